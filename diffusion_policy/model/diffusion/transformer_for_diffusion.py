"""The other noise-prediction network of the paper: a transformer over the steps of the sequence.

Chi et al. 2023, section III-A ("Time-series diffusion transformer"), after minGPT. Noisy actions
are the tokens of a decoder; the diffusion step and the observations are those it cross-attends to.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.common.module_attr_mixin import ModuleAttrMixin
from diffusion_policy.model.diffusion.positional_embedding import SinusoidalPosEmb
from diffusion_policy.model.diffusion.transformer_layers import Attention, TransformerStack

logger = logging.getLogger(__name__)

INITIAL_STD = 0.02  # of all weights and learned position embeddings


class TransformerForDiffusion(ModuleAttrMixin):
    """Predicts the noise of a sequence from the sequence, the diffusion step and the observations.

    ==================  ==============================  =======================================
    network             tokens                          memory of the cross-attention
    ==================  ==============================  =======================================
    ``cond_dim > 0``    the sequence                    diffusion step, observations
    ``cond_dim = 0``    the sequence                    diffusion step
    ``time_as_cond =    diffusion step, the sequence    none: an encoder without a decoder
    False``
    ==================  ==============================  =======================================

    Args:
        input_dim, output_dim: values per step of the sequence and of the prediction.
        horizon: the longest sequence. Position embeddings begin with its first step.
        n_obs_steps: To, the most observations; None is ``horizon``.
        cond_dim: values of one observation; 0 without observations.
        n_layer: of the decoder, or of the encoder where that is alone.
        n_head: attention heads; divides ``n_emb``.
        n_emb: E, size of a token.
        p_drop_emb: dropout of embedded tokens. p_drop_attn: dropout inside the layers.
        causal_attn: a step sees itself and earlier ones, and the observations up to its own.
        time_as_cond: see the table.
        obs_as_cond: ignored; published configurations have it. ``cond_dim`` decides.
        n_cond_layers: layers of self-attention that encode the memory; with 0 it is two dense
            layers, which work on each token alone.

    Raises:
        ConfigError: options that cannot work together.
    """

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int | None = None,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        obs_as_cond: bool = False,
        n_cond_layers: int = 0,
    ):
        super().__init__()
        _check_architecture(cond_dim, n_layer, n_head, n_emb, time_as_cond)
        self.input_dim = input_dim
        self.cond_dim = cond_dim
        self.horizon = horizon
        self.n_obs_steps = horizon if n_obs_steps is None else n_obs_steps
        self.time_as_cond = time_as_cond
        self.obs_as_cond = cond_dim > 0
        self.encoder_only = not time_as_cond
        self.n_cond_layers = n_cond_layers
        self.T = horizon if time_as_cond else horizon + 1
        self.T_cond = int(time_as_cond) + (self.n_obs_steps if self.obs_as_cond else 0)

        def stack(depth: int, cross_attention: bool = False) -> TransformerStack:
            return TransformerStack(depth, n_emb, n_head, p_drop_attn, cross_attention)

        self.input_emb = nn.Linear(input_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, self.T, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if self.obs_as_cond else None
        if self.encoder_only:
            self.encoder = stack(n_layer)
        else:
            self.cond_pos_emb = nn.Parameter(torch.zeros(1, self.T_cond, n_emb))
            self.encoder = stack(n_cond_layers) if n_cond_layers else _dense_layers(n_emb)
            self.decoder = stack(n_layer, cross_attention=True)
        mask = memory_mask = None
        if causal_attn:
            mask = _causal_mask(self.T, self.T)
            if self.obs_as_cond:  # behind the diffusion step: observation t is key t + 1
                memory_mask = _causal_mask(self.T, self.T_cond, offset=1)
        self.register_buffer("mask", mask)
        self.register_buffer("memory_mask", memory_mask)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, output_dim)
        self._draw_weights()
        logger.info("number of parameters: %e", sum(p.numel() for p in self.parameters()))

    def forward(
        self, sample: Tensor, timestep: Tensor | float, cond: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """One evaluation.

        Args:
            sample: (B, <= horizon, input_dim), the noisy sequence.
            timestep: the diffusion step, (B,) or a scalar for all.
            cond: (B, <= n_obs_steps, cond_dim), the observations.
            **kwargs: ignored.

        Returns:
            (B, T, output_dim), T as in ``sample``.

        Raises:
            ConfigError: shapes that do not fit the architecture.
        """
        self._check_sample(sample)
        self._check_cond(cond)
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self.time_emb(timestep)[:, None]
        if self.encoder_only:
            x = self._embed(torch.cat((time, self.input_emb(sample)), dim=1), self.pos_emb)
            x = self.encoder(x, _sliced(self.mask, x.shape[1], x.shape[1]))
            return self.head(self.ln_f(x[:, 1:]))
        tokens = time if cond is None else torch.cat((time, self._obs_tokens(cond)), dim=1)
        return self._decode(sample, self._memory(tokens))

    def prepare_sampling(
        self, timesteps: Tensor, cond: Tensor | None = None
    ) -> Callable[[Tensor, int], Tensor]:
        """Does, once, all that stays the same in a reverse process.

        Without ``n_cond_layers`` no token of the memory sees another. Then the keys and values of
        the observations are computed here, and those of the diffusion step for all ``timesteps``.

        Args:
            timesteps: (n,), the diffusion steps that the reverse process will visit.
            cond: (B, <= n_obs_steps, cond_dim), the observations.

        Returns:
            A function of (sample, i) that equals ``forward(sample, timesteps[i], cond)`` up to
            rounding. After a change of the weights, prepare again.
        """
        self._check_cond(cond)
        # Dropout, in training mode, draws anew at every step.
        if self.encoder_only or self.n_cond_layers or self.training:
            return lambda sample, i: self(sample, timesteps[i], cond)
        # (layers, keys and values, n or B, H, tokens, E / H)
        of_time = torch.stack(self._memory(self.time_emb(timesteps)[:, None]))
        of_obs = None
        if cond is not None:
            of_obs = torch.stack(self._memory(self._obs_tokens(cond), position=1))

        def denoise(sample: Tensor, i: int) -> Tensor:
            self._check_sample(sample)
            memory = of_time[:, :, i : i + 1].expand(-1, -1, len(sample), -1, -1, -1)
            if of_obs is not None:
                memory = torch.cat((memory, of_obs), dim=-2)
            return self._decode(sample, memory)

        return denoise

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """The parameters in two groups: matrices decay; biases, norms and position embeddings do
        not.

        Sorted by name, as in published optimizer states, which count them.
        """
        parameters = [p for _, p in sorted(self.named_parameters(), key=itemgetter(0))]
        return [
            {"params": [p for p in parameters if p.ndim == 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
        ]

    def configure_optimizers(
        self,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.95),
    ) -> torch.optim.AdamW:
        """AdamW over :meth:`get_optim_groups`."""
        return make_adamw(self.get_optim_groups(weight_decay), learning_rate, betas)

    # ---- the parts -------------------------------------------------------------------------------

    def _draw_weights(self) -> None:
        def draw(module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Attention):
                nn.init.normal_(module.in_proj_weight, std=INITIAL_STD)

        self.apply(draw)
        nn.init.normal_(self.pos_emb, std=INITIAL_STD)
        # The position of the diffusion step, where it is the only one, starts at zero.
        if self.obs_as_cond:
            nn.init.normal_(self.cond_pos_emb, std=INITIAL_STD)

    def _embed(self, tokens: Tensor, positions: Tensor, start: int = 0) -> Tensor:
        return self.drop(tokens + positions[:, start : start + tokens.shape[1]])

    def _obs_tokens(self, cond: Tensor) -> Tensor:
        return cast(nn.Linear, self.cond_obs_emb)(cond)

    def _memory(self, tokens: Tensor, position: int = 0) -> list[Tensor]:
        """Keys and values, for each layer of the decoder, of tokens (B, S, E) that stand at
        ``position`` and after it.
        """
        memory = self.encoder(self._embed(tokens, self.cond_pos_emb, position))
        return self.decoder.keys_values(memory)

    def _decode(self, sample: Tensor, keys_values: Sequence[Tensor] | Tensor) -> Tensor:
        x = self._embed(self.input_emb(sample), self.pos_emb)
        mask = _sliced(self.mask, x.shape[1], x.shape[1])
        memory_mask = _sliced(self.memory_mask, x.shape[1], keys_values[0].shape[-2])
        x = self.decoder(x, mask, keys_values, memory_mask)
        return self.head(self.ln_f(x))

    def _check_sample(self, sample: Tensor) -> None:
        _, length, width = sample.shape
        if length > self.horizon:
            raise ConfigError(
                f"The transformer was given a sequence of T = {length} steps (horizon, or "
                "n_action_steps with pred_action_steps_only), but was built with horizon="
                f"{self.horizon}; make the horizons of the policy and of its model equal."
            )
        if width != self.input_dim:
            raise ConfigError(
                f"The transformer was given a sequence of {width} values per step, but was built "
                f"with input_dim={self.input_dim}; make it the values of one action, plus those of "
                "one observation without obs_as_cond."
            )

    def _check_cond(self, cond: Tensor | None) -> None:
        width = 0 if cond is None else cond.shape[-1]
        if width != self.cond_dim:
            raise ConfigError(
                f"The transformer was given observations of {width} values (0: none), but was "
                f"built with cond_dim={self.cond_dim}; make it the values of one observation with "
                "obs_as_cond, and 0 without."
            )
        if cond is not None and cond.shape[1] > self.n_obs_steps:
            raise ConfigError(
                f"The transformer was given {cond.shape[1]} observations, but was built with "
                f"n_obs_steps={self.n_obs_steps}; make n_obs_steps of the policy and of its model "
                "equal."
            )


def make_adamw(
    groups: Iterable[dict[str, Any]], learning_rate: float, betas: Sequence[float]
) -> torch.optim.AdamW:
    """AdamW in one kernel, not a loop over parameters. ``betas`` may be a list of a config."""
    beta1, beta2 = betas
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=True)


def _dense_layers(n_emb: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))


def _causal_mask(n_queries: int, n_keys: int, offset: int = 0) -> Tensor:
    """Minus infinity where query t would look at a key behind t + ``offset``, 0 elsewhere."""
    return torch.full((n_queries, n_keys), -torch.inf).triu(offset + 1)


def _sliced(mask: Tensor | None, n_queries: int, n_keys: int) -> Tensor | None:
    return None if mask is None else mask[:n_queries, :n_keys]


def _check_architecture(
    cond_dim: int, n_layer: int, n_head: int, n_emb: int, time_as_cond: bool
) -> None:
    if cond_dim > 0 and not time_as_cond:
        raise ConfigError(
            f"cond_dim is {cond_dim} but time_as_cond is False; a transformer that observations "
            "condition needs the diffusion step as a condition, too: set time_as_cond to True."
        )
    if n_layer < 1:
        raise ConfigError(f"n_layer is {n_layer}; the transformer needs at least one layer.")
    if n_head < 1 or n_emb % n_head:
        raise ConfigError(
            f"n_emb is {n_emb} and n_head {n_head}; every head has n_emb / n_head values, so n_emb "
            "must be a multiple of n_head."
        )
