"""The observation encoder of the hybrid policies: robomimic's, without robomimic.

Mandlekar et al. 2021, "What Matters in Learning from Offline Human Demonstrations": per camera a
random crop, a ResNet-18 without its pooling, a spatial softmax with 32 keypoints, a linear layer;
vectors as they are. Same arithmetic, state dict and order of random draws as ``ObservationEncoder``
of robomimic 0.2, so that published checkpoints load and seeded runs repeat.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.common.shape_meta import check_encodable, parse_shape_meta
from diffusion_policy.common.torchvision_util import import_torchvision
from diffusion_policy.model.vision.crop_randomizer import (
    AlwaysRandomCrop,
    CropRandomizer,
    fitting_crop,
)
from diffusion_policy.model.vision.group_norm import replace_batch_norm
from diffusion_policy.model.vision.spatial_softmax import SpatialSoftmax

FEATURES = 64  # per camera
KEYPOINTS = 32
BACKBONE_CHANNELS = 512
BACKBONE_STRIDE = 32


class RobomimicObsEncoder(nn.Module):
    """Features of all observations, in the order of ``shape_meta.obs``.

    Args:
        shape_meta: see :mod:`diffusion_policy.common.shape_meta`. The order of ``obs`` counts.
        crop_shape: (height, width) of random crops; None for whole images.
        group_norm: GroupNorm instead of BatchNorm.
        fixed_crop_in_eval: evaluate the centre crop. Otherwise crops are random there too.

    Raises:
        ConfigError: an impossible shape.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        crop_shape: Sequence[int] | None = (76, 76),
        group_norm: bool = False,
        fixed_crop_in_eval: bool = False,
    ):
        super().__init__()
        self.meta = parse_shape_meta(shape_meta)
        self.obs_nets = nn.ModuleDict()
        self.obs_randomizers = nn.ModuleDict()
        crop_class = CropRandomizer if fixed_crop_in_eval else AlwaysRandomCrop
        for key, shape in self.meta.rgb.items():
            input_shape: Sequence[int] = shape
            if crop_shape is not None:
                randomizer = crop_class(shape, *fitting_crop(crop_shape, shape, f"camera {key!r}"))
                self.obs_randomizers[key] = randomizer
                input_shape = randomizer.output_shape_in()
            self.obs_nets[key] = VisualCore(input_shape)
        self.activation = nn.ReLU()
        if group_norm:
            replace_batch_norm(self)

    def forward(self, obs_dict: Mapping[str, Tensor]) -> Tensor:
        """Encodes single time steps.

        Args:
            obs_dict: per key of ``shape_meta`` (N, *shape), images as normalised floats. Other keys
                are ignored.

        Returns:
            (N, Do).

        Raises:
            ConfigError: the observations are not as ``shape_meta`` says.
        """
        check_encodable(self.meta, obs_dict)
        features = [
            self._image_features(key, obs_dict[key]) if key in self.meta.rgb else obs_dict[key]
            for key in self.meta.keys
        ]
        return torch.cat([feature.flatten(1) for feature in features], dim=-1)

    def output_shape(self) -> list[int]:
        """[Do], from the configuration alone."""
        vectors = sum(torch.Size(shape).numel() for shape in self.meta.low_dim.values())
        return [FEATURES * len(self.meta.rgb) + vectors]

    def _image_features(self, key: str, images: Tensor) -> Tensor:
        if key in self.obs_randomizers:
            images = self.obs_randomizers[key](images)
        return self.activation(self.obs_nets[key](images))


class VisualCore(nn.Module):
    """(N, C, H, W) images to (N, 64) features: backbone, spatial softmax, linear layer.

    ``backbone`` and ``pool`` are registered a second time in ``nets``, as in robomimic: published
    checkpoints hold both names of each of their tensors.
    """

    def __init__(self, input_shape: Sequence[int]):
        super().__init__()
        self.backbone = ResNet18Conv(input_shape[0])
        self.pool = SpatialSoftmax(self.backbone.output_shape(input_shape), KEYPOINTS)
        self.nets = nn.Sequential(
            self.backbone, self.pool, nn.Flatten(), nn.Linear(2 * KEYPOINTS, FEATURES)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.nets(images)


class ResNet18Conv(nn.Module):
    """A ResNet-18 up to its last feature map, (N, C, H, W) to (N, 512, ~H/32, ~W/32)."""

    def __init__(self, input_channels: int = 3):
        super().__init__()
        resnet = import_torchvision().models.resnet18(weights=None)
        if input_channels != 3:
            resnet.conv1 = nn.Conv2d(
                input_channels, 64, kernel_size=7, stride=2, padding=3, bias=False
            )
        *convolutional, _avgpool, _fc = resnet.children()
        self.nets = nn.Sequential(*convolutional)

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Shape of the feature map: every stride rounds up."""
        return [BACKBONE_CHANNELS, *(-(-size // BACKBONE_STRIDE) for size in input_shape[1:])]

    def forward(self, images: Tensor) -> Tensor:
        return self.nets(images)
