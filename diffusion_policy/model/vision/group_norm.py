"""GroupNorm in the place of BatchNorm."""

from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.pytorch_util import replace_submodules

CHANNELS_PER_GROUP = 16


def replace_batch_norm(module: nn.Module) -> nn.Module:
    """Replaces every ``BatchNorm2d`` by a fresh ``GroupNorm`` with 16 channels per group, in place.

    The running statistics of BatchNorm do not go together with an exponential moving average of the
    weights (Chi et al. 2023, section 3.2); GroupNorm has none.

    Returns:
        The module (a new one if it was a BatchNorm itself).

    Raises:
        ConfigError: a number of channels is not a multiple of 16.
    """
    return replace_submodules(module, lambda m: isinstance(m, nn.BatchNorm2d), _group_norm)


def _group_norm(batch_norm: nn.Module) -> nn.GroupNorm:
    assert isinstance(batch_norm, nn.BatchNorm2d)
    channels = batch_norm.num_features
    if channels % CHANNELS_PER_GROUP:
        raise ConfigError(
            f"group normalisation puts {CHANNELS_PER_GROUP} channels into a group, but the image "
            f"network has a BatchNorm of {channels} channels; use multiples of "
            f"{CHANNELS_PER_GROUP} or turn group normalisation off"
        )
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)
