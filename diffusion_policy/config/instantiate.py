"""Build what a configuration describes: Hydra's ``instantiate``, asked for allowed names only, with
our one-sentence errors kept whole.
"""

import os
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.config.resolvers import plain
from diffusion_policy.config.targets import check_targets


def instantiate(node: Any, *args: Any, **kwargs: Any) -> Any:
    """Builds the object that a configuration node describes by its ``_target_``.

    What is checked is what is built: the node is first turned into plain dicts, lists and scalars,
    with nothing left in it that could become something else later.

    Raises:
        DiffusionPolicyError: as the constructor raised it, without Hydra's wrapping.
        ConfigError: the target may not be named (see :mod:`.targets`), does not exist, or raised
            anything else.
    """
    tree = plain(node)
    check_targets(tree)
    try:
        return hydra.utils.instantiate(tree, *args, **kwargs)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, DiffusionPolicyError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"{reason} (HYDRA_FULL_ERROR=1 shows the traceback)") from error
