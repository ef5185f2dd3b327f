"""Hydra's ``instantiate``, with our one-sentence errors kept whole."""

from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError


def instantiate(node: Any, *args: Any, **kwargs: Any) -> Any:
    """Builds the object that a configuration node describes by its ``_target_``.

    Raises:
        DiffusionPolicyError: as the constructor raised it, without Hydra's wrapping.
        ConfigError: the target does not exist, or does not take these arguments.
    """
    try:
        return hydra.utils.instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, DiffusionPolicyError):
                raise cause from None
            last, cause = cause, cause.__cause__ or cause.__context__
        if isinstance(last, ImportError | TypeError | AttributeError | InstantiationException):
            raise ConfigError(" ".join(str(error).split())) from error
        raise
