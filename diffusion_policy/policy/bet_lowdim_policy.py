"""Behavior Transformers on low-dimensional observations (Shafiullah et al. 2022)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_policy.common.draws import Generators
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.bet.action_ae.discretizers.k_means import KMeansDiscretizer
from diffusion_policy.model.bet.latent_generators.latent_generator import AbstractLatentGenerator
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.policy.base_lowdim_policy import BaseLowdimPolicy

# In normalised units, where real observations lie within [-1, 1].
NOT_OBSERVED = -2.0


class BETLowdimPolicy(BaseLowdimPolicy):
    """Draws the bin of each action and adds the offset that belongs to the bin.

    Args:
        action_ae: actions to latents and back; fitted by :meth:`fit_action_ae`.
        obs_encoding_net: encodes normalised observations (B, T, Do).
        state_prior: predicts latents from encoded observations; all that is trained by gradients.
        horizon: T. n_action_steps: Ta, actions executed per prediction. n_obs_steps: To.
    """

    def __init__(
        self,
        action_ae: KMeansDiscretizer,
        obs_encoding_net: nn.Module,
        state_prior: AbstractLatentGenerator,
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
    ):
        super().__init__()
        self.normalizer = LinearNormalizer()
        self.action_ae = action_ae
        self.obs_encoding_net = obs_encoding_net
        self.state_prior = state_prior
        self.horizon = horizon
        self.n_action_steps = n_action_steps
        self.n_obs_steps = n_obs_steps

    def _encoded(self, nobs: Tensor, length: int) -> Tensor:
        """Encoded observations of ``length`` steps, of which the first n_obs_steps are seen."""
        if nobs.shape[1] < self.n_obs_steps:
            raise ConfigError(
                f"obs has {nobs.shape[1]} steps, the policy was built with n_obs_steps="
                f"{self.n_obs_steps}; give it as many"
            )
        seen = nobs[:, : self.n_obs_steps]
        unseen = (0, 0, 0, length - self.n_obs_steps)
        return self.obs_encoding_net(F.pad(seen, unseen, value=NOT_OBSERVED))

    @torch.no_grad()
    def predict_action(
        self, obs_dict: dict[str, Tensor], generator: Generators = None
    ) -> dict[str, Tensor]:
        """Predicts actions for ``obs`` (B, >= To, Do).

        Returns:
            ``action`` (B, Ta, Da), the first one belonging to the newest observation, and
            ``action_pred`` (B, T, Da), in raw units.

        Raises:
            ConfigError: there are fewer than n_obs_steps observations, or no bins yet.
        """
        assert "past_action" not in obs_dict, "past actions as an input are not implemented"
        nobs = self.normalizer["obs"].normalize(obs_dict["obs"])
        encoded = self._encoded(nobs, self.horizon)
        latents = self.state_prior.generate_latents(encoded, generator)
        naction = self.action_ae.decode_actions(latents, encoded)
        action = self.normalizer["action"].unnormalize(naction)
        start = self.n_obs_steps - 1
        return {"action": action[:, start : start + self.n_action_steps], "action_pred": action}

    def fit_action_ae(self, input_actions: Tensor) -> None:
        """Fits the bins to all actions (N, Da) of the data set, normalised; once in a lifetime."""
        self.action_ae.fit_discretizer(input_actions)

    def get_optimizer(
        self, weight_decay: float, learning_rate: float, betas: Sequence[float]
    ) -> torch.optim.Optimizer:
        """The optimizer of the state prior."""
        return self.state_prior.get_optimizer(
            weight_decay=weight_decay, learning_rate=learning_rate, betas=betas
        )

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch ``obs`` (B, T, Do), ``action`` (B, T, Da), in raw units.

        Returns:
            The loss and its components: ``offset``, ``class``, ``total``.
        """
        assert "valid_mask" not in batch, "masked batches are not implemented"
        nbatch = self.normalizer.normalize(batch)
        encoded = self._encoded(nbatch["obs"], nbatch["action"].shape[1])
        latents = self.action_ae.encode_into_latent(nbatch["action"], encoded)
        _, loss, components = self.state_prior.get_latent_and_loss(
            encoded, latents, return_loss_components=True
        )
        return loss, components
