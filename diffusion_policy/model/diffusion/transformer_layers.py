"""The layers of the diffusion transformer (Vaswani et al. 2017; "pre-norm": Xiong et al. 2020).

Parameters are named as in ``torch.nn.TransformerEncoder`` and ``torch.nn.TransformerDecoder``, so
that published checkpoints load. Unlike those, the layers take keys and values that were computed
before: what the cross-attention looks at mostly stays the same while actions are denoised.
"""

import copy
from collections.abc import Iterable
from itertools import repeat
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention; keys and values can be computed ahead of the queries.

    Args:
        n_emb: E, size of a token; a multiple of ``n_head``.
        n_head: H.
        dropout: of attention weights, in training.
    """

    def __init__(self, n_emb: int, n_head: int, dropout: float):
        super().__init__()
        self.n_emb = n_emb
        self.n_head = n_head
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * n_emb, n_emb))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * n_emb))
        self.out_proj = nn.Linear(n_emb, n_emb)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self, x: Tensor, keys_values: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attends from the tokens ``x`` to others, or to themselves.

        Args:
            x: (B, T, E).
            keys_values: (2, B, H, S, E / H), see :meth:`keys_values`; None for self-attention.
            mask: (T, S), added to the scores.

        Returns:
            (B, T, E).
        """
        if keys_values is None:
            query, key, value = self._project(x, slice(None))
        else:
            [query] = self._project(x, slice(self.n_emb))
            key, value = keys_values
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        # In memory the steps come before the batch, as in torch's own layers: dropout follows that
        # order, so that a seed gives the masks of the original.
        return self.out_proj(out.permute(2, 0, 1, 3).flatten(2)).transpose(0, 1)

    def keys_values(self, memory: Tensor) -> Tensor:
        """Keys and values (2, B, H, S, E / H) of the tokens ``memory`` (B, S, E)."""
        return self._project(memory, slice(self.n_emb, None))

    def _project(self, x: Tensor, rows: slice) -> Tensor:
        """Queries, keys, values or some of them, (n, B, H, T, E / H): ``rows`` says which."""
        projected = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        heads = projected.unflatten(-1, (-1, self.n_head, self.n_emb // self.n_head))
        return heads.permute(2, 0, 3, 1, 4)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention where asked for, and two dense layers; each after a norm and
    around a residual connection.
    """

    def __init__(self, n_emb: int, n_head: int, dropout: float, cross_attention: bool):
        super().__init__()
        self.self_attn = Attention(n_emb, n_head, dropout)
        if cross_attention:
            self.multihead_attn = Attention(n_emb, n_head, dropout)
        self.linear1 = nn.Linear(n_emb, 4 * n_emb)
        self.linear2 = nn.Linear(4 * n_emb, n_emb)
        self.norm1 = nn.LayerNorm(n_emb)
        self.norm2 = nn.LayerNorm(n_emb)
        if cross_attention:
            self.norm3 = nn.LayerNorm(n_emb)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keys_values: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, E) to the same; see :meth:`Attention.forward` for the other arguments.

        ``keys_values`` and ``memory_mask`` are those of the cross-attention.
        """
        x = x + self.dropout(self.self_attn(self.norm1(x), mask=mask))
        last_norm = self.norm2
        if keys_values is not None:
            x = x + self.dropout(self.multihead_attn(self.norm2(x), keys_values, memory_mask))
            last_norm = self.norm3
        hidden = F.gelu(self.linear1(last_norm(x)))
        return x + self.dropout(self.linear2(self.dropout(hidden)))


class TransformerStack(nn.Module):
    """Equal layers, one after the other.

    Args:
        n_layer: number of layers.
        n_emb, n_head, dropout, cross_attention: of each.
    """

    def __init__(
        self, n_layer: int, n_emb: int, n_head: int, dropout: float, cross_attention: bool = False
    ):
        super().__init__()
        # Copies, as torch makes them: a seed then draws the initial weights of the original.
        layer = TransformerLayer(n_emb, n_head, dropout, cross_attention)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(n_layer))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keys_values: Iterable[Tensor] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, E) to the same.

        Args:
            mask: (T, T), added to the scores of the self-attention.
            keys_values: of the cross-attention of each layer, see :meth:`keys_values`.
            memory_mask: (T, S), added to its scores.
        """
        memories = repeat(None) if keys_values is None else keys_values
        for layer, memory in zip(self.layers, memories, strict=False):
            x = layer(x, mask, memory, memory_mask)
        return x

    def keys_values(self, memory: Tensor) -> list[Tensor]:
        """What the cross-attention of each layer needs to know of ``memory`` (B, S, E)."""
        return [layer.multihead_attn.keys_values(memory) for layer in cast(Any, self.layers)]
