"""What every policy looks like to the rest of the house."""

import torch

from diffusion_policy.common.draws import Generators
from diffusion_policy.model.common.module_attr_mixin import ModuleAttrMixin
from diffusion_policy.model.common.normalizer import LinearNormalizer


class BasePolicy(ModuleAttrMixin):
    """Maps a window of observations to a chunk of actions.

    Attributes:
        normalizer: of observations and actions; every policy makes an empty one.
    """

    normalizer: LinearNormalizer

    def predict_action(
        self, obs_dict: dict[str, torch.Tensor], generator: Generators = None
    ) -> dict[str, torch.Tensor]:
        """Predicts the next actions.

        Args:
            obs_dict: raw observations, ``(B, >= n_obs_steps, ...)`` per key; only the first
                n_obs_steps are used.
            generator: source of the policy's noise; None is torch's global generator.

        Returns:
            ``action`` (B, n_action_steps, Da) in raw units, to be executed; methods add more.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets the past; called before each group of episodes. Stateless policies do nothing."""

    def set_normalizer(self, normalizer: LinearNormalizer) -> None:
        """Takes over (a copy of) the normalizer fitted on the training data."""
        self.normalizer.load_state_dict(normalizer.state_dict())
