"""Base class of runners for policies that observe vectors."""

from diffusion_policy.env_runner.base_runner import BaseRunner


class BaseLowdimRunner(BaseRunner):
    """Evaluates a :class:`BaseLowdimPolicy`; see :class:`BaseRunner`."""
