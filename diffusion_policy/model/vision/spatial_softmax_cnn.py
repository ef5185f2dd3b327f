"""A small image encoder that trains in minutes on a CPU."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.vision.spatial_softmax import expected_positions, pixel_positions


class SpatialSoftmaxCNN(nn.Module):
    """A few convolutions, then the image coordinates of what the last one responds to.

    After Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies" (section 5.1),
    with strides instead of large kernels, and with GroupNorm. 30 million multiplications per 84x84
    image, a tenth of a ResNet-18's, and 60 thousand parameters.

    There is no temperature: the convolution in front of the softmax has a scale of its own. Nor has
    it a bias, which a softmax over pixels would not see.

    Args:
        input_channels: of the images.
        channels: of the convolutions. The first is 5x5, the others 3x3; the first two halve the
            resolution, the others keep it.
        num_keypoints: K.

    Raises:
        ConfigError: a number of channels cannot be normalised in groups.
    """

    GROUPS = 8

    def __init__(
        self,
        input_channels: int = 3,
        channels: Sequence[int] = (32, 64, 64),
        num_keypoints: int = 32,
    ):
        super().__init__()
        if not channels or any(width < 1 or width % self.GROUPS for width in channels):
            raise ConfigError(
                f"channels of SpatialSoftmaxCNN are {list(channels)}; expected multiples of "
                f"{self.GROUPS}, which are normalised in {self.GROUPS} groups"
            )
        layers: list[nn.Module] = []
        for i, (width_in, width) in enumerate(pairwise([input_channels, *channels])):
            layers += [
                _conv(width_in, width, kernel_size=3 if i else 5, stride=2 if i < 2 else 1),
                nn.GroupNorm(self.GROUPS, width),
                nn.ReLU(),
            ]
        self.convs = nn.Sequential(*layers)
        self.heatmaps = nn.Conv2d(channels[-1], num_keypoints, kernel_size=1, bias=False)
        _spread_logits(self.heatmaps)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) normalised images to (N, 2 * K), pairs (x, y) in [-1, 1]."""
        logits = self.heatmaps(self.convs(images))
        pos_x, pos_y = pixel_positions(*logits.shape[-2:], device=logits.device)
        return expected_positions(logits, pos_x, pos_y).flatten(1)


def _conv(width_in: int, width: int, kernel_size: int, stride: int) -> nn.Conv2d:
    """Keeps size / stride. No bias: the GroupNorm that follows has one."""
    conv = nn.Conv2d(
        width_in, width, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


def _spread_logits(conv: nn.Conv2d, std: float = 2.0) -> None:
    """Makes the initial logits vary by ``std``, so that keypoints move with the image at once.

    Inputs are rectified unit normals, of mean square 1/2. With the default initialisation the
    softmax is nearly uniform: all keypoints sit in the middle of every image and the features carry
    next to nothing until the weights have grown.
    """
    nn.init.normal_(conv.weight, std=std * math.sqrt(2 / conv.in_channels))
