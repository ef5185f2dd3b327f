"""What happens to an image before it enters a network; leaves no trace in state dicts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.shape_meta import Shape
from diffusion_policy.model.vision.crop_randomizer import (
    CropRandomizer,
    center_crop,
    fitting_crop,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def camera_transform(
    camera: str,
    image_shape: Shape,
    resize_shape: Sequence[int] | None,
    crop_shape: Sequence[int] | None,
    random_crop: bool,
    keep_center_crop: bool,
    imagenet_norm: bool,
    resize_antialias: bool = False,
) -> tuple[nn.Sequential, Shape]:
    """Resize, crop, normalise; each may be missing.

    Args:
        camera: named in errors.
        image_shape: (C, H, W).
        crop_shape: (height, width), after resizing.
        random_crop: random crops in training. Otherwise the whole image, or its centre crop
            if ``keep_center_crop``.

    Returns:
        The transform, and the shape (C, H, W) of what it returns.

    Raises:
        ConfigError: an impossible shape.
    """
    steps: list[nn.Module] = [nn.Identity(), nn.Identity(), nn.Identity()]
    channels, shape = image_shape[0], image_shape
    if resize_shape is not None:
        if len(resize_shape) != 2 or min(resize_shape) < 1:
            raise ConfigError(
                f"resize_shape of {camera!r} is {list(resize_shape)}; expected [height, width]"
            )
        steps[0] = Resize(*resize_shape, antialias=resize_antialias)
        shape = (channels, *resize_shape)
    if crop_shape is not None and (random_crop or keep_center_crop):
        size = fitting_crop(crop_shape, shape, f"camera {camera!r}", may_be_equal=not random_crop)
        steps[1] = CropRandomizer(shape, *size) if random_crop else CenterCrop(*size)
        shape = (channels, *size)
    if imagenet_norm:
        if channels != len(IMAGENET_MEAN):
            raise ConfigError(
                f"imagenet_norm is for 3 channels, but camera {camera!r} has {channels}; "
                "set imagenet_norm: false"
            )
        steps[2] = ImageNetNormalize()
    return nn.Sequential(*steps), shape


class Resize(nn.Module):
    """Bilinear resizing, as torchvision's; published policies were trained without antialiasing."""

    def __init__(self, height: int, width: int, antialias: bool = False):
        super().__init__()
        self.size = (height, width)
        self.antialias = antialias

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == self.size:
            return images
        return F.interpolate(
            images, self.size, mode="bilinear", align_corners=False, antialias=self.antialias
        )

    def extra_repr(self) -> str:
        return f"{self.size[0]}, {self.size[1]}, antialias={self.antialias}"


class CenterCrop(nn.Module):
    """The centre of the image."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.size = (height, width)

    def forward(self, images: Tensor) -> Tensor:
        return center_crop(images, *self.size)

    def extra_repr(self) -> str:
        return f"{self.size[0]}, {self.size[1]}"


class ImageNetNormalize(nn.Module):
    """Subtracts the mean colour of ImageNet and divides by its standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self):
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
