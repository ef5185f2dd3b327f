"""Base class of policies on low-dimensional observations."""

from diffusion_policy.policy.base_policy import BasePolicy


class BaseLowdimPolicy(BasePolicy):
    """Observations are one vector per step: ``obs`` (B, >= n_obs_steps, Do)."""
