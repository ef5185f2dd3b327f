"""Crops of images: random ones for training, the centre for evaluation.

Random crops matter more than they seem: without them image policies overfit to absolute pixel
positions (Mandlekar et al. 2021, "What Matters in Learning from Offline Human Demonstrations").
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffusion_policy.common.draws import Draws, Generators, draw_rows
from diffusion_policy.common.errors import ConfigError


class CropRandomizer(nn.Module):
    """Random crops in training, the centre crop in evaluation. No parameters.

    Args:
        input_shape: (C, H, W) of the images.
        crop_height: of the crops, less than H.
        crop_width: of the crops, less than W.
        num_crops: N, crops per image; their features are averaged by :meth:`forward_out`.
        pos_enc: append two channels with the row and column of each pixel in the image, in [0, 1).

    Raises:
        ConfigError: the crop is not smaller than the image.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        crop_height: int,
        crop_width: int,
        num_crops: int = 1,
        pos_enc: bool = False,
    ):
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.crop_height, self.crop_width = fitting_crop((crop_height, crop_width), input_shape)
        self.num_crops = num_crops
        self.pos_enc = pos_enc

    def output_shape_in(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Shape of one crop."""
        channels = self.input_shape[0] + (2 if self.pos_enc else 0)
        return [channels, self.crop_height, self.crop_width]

    def output_shape_out(self, input_shape: Sequence[int]) -> list[int]:
        """Averaging over the crops leaves the shape of the features as it is."""
        return list(input_shape)

    def forward_in(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) images to (B * N, C, crop_height, crop_width), crops of an image in a row.

        Raises:
            ConfigError: the images are not of the shape given at construction.
        """
        if tuple(inputs.shape[1:]) != self.input_shape:
            raise ConfigError(
                f"images of shape {list(inputs.shape)} arrived at a random crop that was made for "
                f"[batch, {', '.join(map(str, self.input_shape))}]; make shape_meta and data agree"
            )
        return self._random_crops(inputs) if self.training else self._evaluation_crops(inputs)

    def forward_out(self, inputs: Tensor) -> Tensor:
        """(B * N, ...) features of the crops to (B, ...), their mean over the crops of an image."""
        if self.num_crops <= 1:
            return inputs
        return inputs.unflatten(0, (-1, self.num_crops)).mean(dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.forward_in(inputs)

    def _random_crops(self, images: Tensor) -> Tensor:
        crops, _ = sample_random_image_crops(
            images, self.crop_height, self.crop_width, self.num_crops, self.pos_enc
        )
        return crops.flatten(0, 1)

    def _evaluation_crops(self, images: Tensor) -> Tensor:
        if self.pos_enc:
            images = append_position_channels(images)
        crops = center_crop(images, self.crop_height, self.crop_width)
        return crops.repeat_interleave(self.num_crops, dim=0) if self.num_crops > 1 else crops

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(input_shape={list(self.input_shape)}, "
            f"crop_size=[{self.crop_height}, {self.crop_width}], num_crops={self.num_crops}, "
            f"pos_enc={self.pos_enc})"
        )


class AlwaysRandomCrop(CropRandomizer):
    """Random crops in evaluation too, as robomimic 0.2 has it.

    They come from the global generator, or from those of the episodes: :func:`crops_drawn_by`.
    """

    generator: Generators = None

    def _evaluation_crops(self, images: Tensor) -> Tensor:
        if self.generator is None:
            return self._random_crops(images)
        room = torch.tensor(images.shape[-2:]) - torch.tensor([self.crop_height, self.crop_width])
        draws = Draws(self.generator, len(images), room.device)
        corners = (draws.uniform(self.num_crops, 2) * room).long().to(images.device)
        if self.pos_enc:
            images = append_position_channels(images)
        crops = crop_image_from_indices(images, corners, self.crop_height, self.crop_width)
        return crops.flatten(0, 1)


@contextmanager
def crops_drawn_by(
    module: nn.Module, generator: Generators, images_per_row: int = 1
) -> Iterator[None]:
    """Within, the random crops of evaluation are drawn by these generators.

    Args:
        module: an encoder, or anything else that holds :class:`AlwaysRandomCrop`.
        generator: of a batch of rows; None is torch's global one.
        images_per_row: how many images in succession belong to a row.
    """
    if isinstance(generator, list):
        generator = [g for g in generator for _ in range(images_per_row)]
    crops = [part for part in module.modules() if isinstance(part, AlwaysRandomCrop)]
    for crop in crops:
        crop.generator = generator
    try:
        yield
    finally:
        for crop in crops:
            crop.generator = None


def sample_random_image_crops(
    images: Tensor, crop_height: int, crop_width: int, num_crops: int, pos_enc: bool = False
) -> tuple[Tensor, Tensor]:
    """Cuts ``num_crops`` crops out of every image, at uniformly drawn places.

    Draws twice from the global CPU generator, first all rows, then all columns, wherever the images
    are: published results depend on it. The offset ``H - crop_height`` itself is never drawn.

    Args:
        images: (..., C, H, W).

    Returns:
        The crops (..., N, C, crop_height, crop_width) and the row and column of their upper left
        corners (..., N, 2), on the device of the images.
    """
    if pos_enc:
        images = append_position_channels(images)
    height, width = images.shape[-2:]
    rows, *shape = images.shape[:-3] or (1,)
    draws = [
        draw_rows(lambda n: torch.rand(n, *shape, num_crops, device="cpu"), rows)
        for _ in ("rows", "columns")
    ]
    room = torch.tensor([height - crop_height, width - crop_width], device="cpu")
    draws = torch.stack(draws, dim=-1).view(*images.shape[:-3], num_crops, 2)
    indices = (draws * room).long().to(images.device, non_blocking=True)
    return crop_image_from_indices(images, indices, crop_height, crop_width), indices


def crop_image_from_indices(
    images: Tensor, crop_indices: Tensor, crop_height: int, crop_width: int
) -> Tensor:
    """Cuts crops at given places.

    All windows of an image are a view of it; only the chosen ones are copied, by one indexing
    operation that does not wait for the device.

    Args:
        images: (..., C, H, W).
        crop_indices: (..., N, 2), row and column of the upper left corners.

    Returns:
        (..., N, C, crop_height, crop_width).

    Raises:
        ConfigError: the crop is larger than the image.
        ValueError: a corner is so that the crop would leave the image (checked on the CPU, where
            the check needs no synchronisation).
    """
    fitting_crop((crop_height, crop_width), images.shape[-3:], may_be_equal=True)
    if crop_indices.device.type == "cpu":
        _check_corners(crop_indices, images, crop_height, crop_width)
    flat = images.reshape(-1, *images.shape[-3:])
    # (M, C, H - crop_height + 1, W - crop_width + 1, crop_height, crop_width) without a copy
    windows = flat.unfold(-2, crop_height, 1).unfold(-2, crop_width, 1)
    rows, columns = crop_indices.reshape(len(flat), -1, 2).unbind(-1)
    which = torch.arange(len(flat), device=images.device)[:, None]
    return windows[which, :, rows, columns].reshape(
        *crop_indices.shape[:-1], -1, crop_height, crop_width
    )


def _check_corners(corners: Tensor, images: Tensor, crop_height: int, crop_width: int) -> None:
    last = [images.shape[-2] - crop_height, images.shape[-1] - crop_width]
    if ((corners < 0) | (corners > corners.new_tensor(last))).any():
        raise ValueError(
            f"a corner of a {crop_height}x{crop_width} crop of {list(images.shape[-2:])} images is "
            f"outside of rows 0..{last[0]} and columns 0..{last[1]}"
        )


def center_crop(images: Tensor, crop_height: int, crop_width: int) -> Tensor:
    """The centre of (..., H, W) images, a view; half a pixel is rounded to the even offset."""
    top = round((images.shape[-2] - crop_height) / 2)
    left = round((images.shape[-1] - crop_width) / 2)
    return images[..., top : top + crop_height, left : left + crop_width]


def append_position_channels(images: Tensor) -> Tensor:
    """(..., C, H, W) to (..., C + 2, H, W): row / H and column / W of every pixel."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype) / height
    columns = torch.arange(width, device=images.device, dtype=images.dtype) / width
    positions = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([images, positions.expand(*images.shape[:-3], 2, height, width)], dim=-3)


def fitting_crop(
    crop_shape: Sequence[int],
    image_shape: Sequence[int],
    camera: str = "the images",
    may_be_equal: bool = False,
) -> tuple[int, int]:
    """(height, width) of a crop that fits into (C, H, W) images.

    Raises:
        ConfigError: with the name of the camera.
    """
    height, width = image_shape[1:]
    if len(crop_shape) != 2:
        raise ConfigError(
            f"the crop shape of {camera} is {list(crop_shape)}; expected [height, width]"
        )
    crop_height, crop_width = crop_shape
    room = min(height - crop_height, width - crop_width)
    if min(crop_height, crop_width) < 1 or room < (0 if may_be_equal else 1):
        raise ConfigError(
            f"a crop of {list(crop_shape)} does not fit into the [{height}, {width}] pixels of "
            f"{camera}; choose a smaller crop_shape (both numbers), or null for whole images"
        )
    return crop_height, crop_width
