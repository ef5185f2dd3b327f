"""Base class of policies on low-dimensional observations."""

from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.policy.base_policy import BasePolicy


class BaseLowdimPolicy(BasePolicy):
    """Observations are one vector per step: ``obs`` (B, >= n_obs_steps, Do).

    Attributes:
        obs_dim: Do. action_dim: Da.
    """

    obs_dim: int
    action_dim: int

    def check_widths(self, batch: dict[str, Tensor]) -> None:
        """Compares ``obs`` and ``action``, as far as they are there, with Do and Da.

        Raises:
            ConfigError: a width differs.
        """
        for key, expected in (("obs", self.obs_dim), ("action", self.action_dim)):
            if key in batch and (found := batch[key].shape[-1]) != expected:
                raise ConfigError(
                    f"{key!r} has {found} values per step, the policy was built with {key}_dim="
                    f"{expected}; set task.{key}_dim to what the task delivers"
                )
