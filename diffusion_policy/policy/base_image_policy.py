"""Base class of policies on images and low-dimensional observations."""

from diffusion_policy.policy.base_policy import BasePolicy


class BaseImagePolicy(BasePolicy):
    """Observations are one tensor per key of ``shape_meta.obs``.

    Images are (B, >= n_obs_steps, C, H, W) in [0, 1], low-dimensional values
    (B, >= n_obs_steps, D).
    """
