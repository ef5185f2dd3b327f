"""Base class of runners for policies that observe images."""

from diffusion_policy.env_runner.base_runner import BaseRunner


class BaseImageRunner(BaseRunner):
    """Evaluates a :class:`BaseImagePolicy`; see :class:`BaseRunner`."""
