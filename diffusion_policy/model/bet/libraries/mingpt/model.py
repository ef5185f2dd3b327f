"""A small GPT: a stack of causal self-attention blocks (Radford et al. 2018), pre-norm.

It reads a sequence of vectors, or of tokens, and gives one vector of logits per step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError

INIT_STD = 0.02


@dataclass
class GPTConfig:
    """The size of a GPT.

    Attributes:
        vocab_size: logits per step; with ``discrete_input`` also the number of tokens.
        block_size: steps of the longest sequence.
        input_size: values per step (unless ``discrete_input``).
        n_embd: width; a multiple of ``n_head``.
        embd_pdrop, resid_pdrop, attn_pdrop: dropout of embeddings, residual branches, attention.
        discrete_input: steps are tokens, not vectors.
    """

    vocab_size: int
    block_size: int
    input_size: int = 10
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    discrete_input: bool = False


@dataclass
class GPT1Config(GPTConfig):
    """The size of GPT-1: 12 layers, 12 heads, 768 wide, which are the defaults."""


class CausalSelfAttention(nn.Module):
    """Every step attends to itself and to those before it (Vaswani et al. 2017).

    Raises:
        ConfigError: the width is not a multiple of the number of heads.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        width = config.n_embd
        if width % config.n_head != 0:
            raise ConfigError(f"n_embd is {width}; set it to a multiple of n_head={config.n_head}")
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.resid_drop = nn.Dropout(config.resid_pdrop)
        self.proj = nn.Linear(width, width)
        # Nothing reads it, but published checkpoints hold it.
        mask = torch.ones(config.block_size, config.block_size).tril()
        self.register_buffer("mask", mask[None, None])
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, heads, T, width)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.attn_pdrop if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.resid_drop(self.proj(y.transpose(1, 2).flatten(-2)))


class Block(nn.Module):
    """Attention, then a two-layer network, each around a residual connection."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        width = config.n_embd
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = CausalSelfAttention(config)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(config.resid_pdrop),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """The whole network: embedding of the steps and their positions, blocks, linear head."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        width = config.n_embd
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block_size, width))
        self.tok_emb = (
            nn.Embedding(config.vocab_size, width)
            if config.discrete_input
            else nn.Linear(config.input_size, width)
        )
        self.drop = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layer)))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.block_size = config.block_size
        self.vocab_size = config.vocab_size
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.pos_emb, std=INIT_STD)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits of a sequence.

        Args:
            x: (B, T, input_size); with ``discrete_input`` tokens (B, T).
            targets: classes (B, T).

        Returns:
            Logits (B, T, vocab_size), and their cross-entropy, None without targets.

        Raises:
            ConfigError: the sequence is longer than ``block_size``.
        """
        n_steps = x.shape[1]
        if n_steps > self.block_size:
            raise ConfigError(
                f"the sequence has {n_steps} steps but the GPT was built with block_size="
                f"{self.block_size}; set block_size to the horizon"
            )
        x = self.drop(self.tok_emb(x) + self.pos_emb[:, :n_steps])
        logits = self.head(self.ln_f(self.blocks(x)))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(
        self,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.1,
        betas: Sequence[float] = (0.9, 0.95),
    ) -> torch.optim.AdamW:
        """AdamW that decays the weights of linear layers only; parameters in order of their names,
        as in published optimizer states."""
        linear = {id(m.weight) for m in self.modules() if isinstance(m, nn.Linear)}
        params = [param for _, param in sorted(self.named_parameters())]
        groups = [
            {"params": [p for p in params if id(p) in linear], "weight_decay": weight_decay},
            {"params": [p for p in params if id(p) not in linear], "weight_decay": 0.0},
        ]
        beta1, beta2 = betas  # from a configuration: not a tuple
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=True)
