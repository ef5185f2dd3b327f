"""Encoder for any number of cameras and vectors, with an image network of one's choice."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.shape_meta import Shape, check_encodable, parse_shape_meta
from diffusion_policy.model.common.module_attr_mixin import ModuleAttrMixin
from diffusion_policy.model.vision.group_norm import replace_batch_norm
from diffusion_policy.model.vision.image_transforms import camera_transform

PerCamera = Mapping[str, Any]
SHARED = "rgb"  # name of the only entry of key_model_map when the network is shared


class MultiImageObsEncoder(ModuleAttrMixin):
    """Image features and vectors, concatenated: alphabetically by key, images first.

    Args:
        shape_meta: see :mod:`diffusion_policy.common.shape_meta`.
        rgb_model: network from (N, C, H, W) images to (N, F) features. Every camera gets its own
            copy of it (all start equal), unless it is a mapping from camera to network.
        resize_shape: (height, width) to resize to; one for all cameras, or a mapping from camera.
        crop_shape: (height, width) of crops after resizing; one for all, or a mapping.
        random_crop: random crops in training, the centre crop in evaluation. If false, images are
            NOT cropped: the original lost its centre crop, and published results are without it.
        use_group_norm: GroupNorm instead of BatchNorm. Has no effect on a shared network, as in the
            original, whose pretrained configurations rely on that.
        share_rgb_model: one network for all cameras, which then go through it as one batch.
        imagenet_norm: normalise colours as for ImageNet weights. It takes images for [0, 1] while
            the policies' normalizers give [-1, 1]; kept, since published weights are trained so.
        keep_center_crop: with ``random_crop=False`` and a ``crop_shape``, really crop the centre.
        resize_antialias: antialias while resizing. Better pictures, but not what published weights
            were trained with (torchvision antialiases tensors by default only since 0.17).

    Raises:
        ConfigError: shapes or options that do not fit together.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        rgb_model: nn.Module | PerCamera,
        resize_shape: Sequence[int] | PerCamera | None = None,
        crop_shape: Sequence[int] | PerCamera | None = None,
        random_crop: bool = True,
        use_group_norm: bool = False,
        share_rgb_model: bool = False,
        imagenet_norm: bool = False,
        keep_center_crop: bool = False,
        resize_antialias: bool = False,
    ):
        super().__init__()
        self.meta = parse_shape_meta(shape_meta)
        self.rgb_keys = sorted(self.meta.rgb)
        self.low_dim_keys = sorted(self.meta.low_dim)
        self.share_rgb_model = share_rgb_model

        self.key_transform_map = nn.ModuleDict()
        image_shapes: dict[str, Shape] = {}
        for key, shape in self.meta.rgb.items():
            self.key_transform_map[key], image_shapes[key] = camera_transform(
                key,
                shape,
                _of_camera(key, resize_shape, "resize_shape"),
                _of_camera(key, crop_shape, "crop_shape"),
                random_crop,
                keep_center_crop,
                imagenet_norm,
                resize_antialias,
            )
        if share_rgb_model:
            self.key_model_map = _shared_model(rgb_model, image_shapes)
        else:
            self.key_model_map = _own_models(self.meta.rgb, rgb_model, use_group_norm)

    def forward(self, obs_dict: Mapping[str, Tensor]) -> Tensor:
        """Encodes single time steps.

        Args:
            obs_dict: per key of ``shape_meta`` (B, *shape), images as normalised floats.

        Returns:
            (B, Do).

        Raises:
            ConfigError: the observations are not as ``shape_meta`` says.
        """
        check_encodable(self.meta, obs_dict)
        # One camera after the other: the order in which random crops are drawn.
        images = [self.key_transform_map[key](obs_dict[key]) for key in self.rgb_keys]
        if self.share_rgb_model:
            features = self.key_model_map[SHARED](torch.cat(images)).chunk(len(images))
        else:
            models = (self.key_model_map[key] for key in self.rgb_keys)
            features = [model(image) for model, image in zip(models, images, strict=True)]
        vectors = [obs_dict[key].flatten(1) for key in self.low_dim_keys]
        return torch.cat([*features, *vectors], dim=-1)

    @torch.no_grad()
    def output_shape(self) -> torch.Size:
        """(Do,), found by encoding one black image per camera.

        Draws no random numbers and leaves running statistics alone.
        """
        zeros = {
            key: torch.zeros(1, *shape, dtype=self.dtype, device=self.device)
            for key, shape in self.meta.obs.items()
        }
        with _evaluation_mode(self):
            return self(zeros).shape[1:]


def _own_models(
    cameras: Mapping[str, Shape], rgb_model: nn.Module | PerCamera, use_group_norm: bool
) -> nn.ModuleDict:
    models = nn.ModuleDict()
    for key in cameras:
        if isinstance(rgb_model, Mapping):
            model = _of_camera(key, rgb_model, "rgb_model")
        else:
            model = copy.deepcopy(rgb_model)
        models[key] = replace_batch_norm(model) if use_group_norm else model
    return models


def _shared_model(
    rgb_model: nn.Module | PerCamera, image_shapes: Mapping[str, Shape]
) -> nn.ModuleDict:
    if not isinstance(rgb_model, nn.Module):
        raise ConfigError(
            f"share_rgb_model is true, but rgb_model is one network per camera "
            f"({sorted(rgb_model)}); give a single network, or set share_rgb_model: false"
        )
    if not image_shapes:
        raise ConfigError("share_rgb_model is true, but shape_meta.obs has no observation of rgb")
    if len(set(image_shapes.values())) > 1:
        shapes = ", ".join(f"{key}: {list(shape)}" for key, shape in image_shapes.items())
        raise ConfigError(
            f"share_rgb_model needs images of one size, but after resizing and cropping they are "
            f"{shapes}; give all cameras one resize_shape, or set share_rgb_model: false"
        )
    return nn.ModuleDict({SHARED: rgb_model})


def _of_camera(key: str, option: Any, name: str) -> Any:
    """The value of an option that is one for all cameras, or a mapping from camera."""
    if not isinstance(option, Mapping):
        return option
    if key not in option:
        raise ConfigError(
            f"{name} has no entry for camera {key!r} of shape_meta (it has {sorted(option)})"
        )
    return option[key]


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part is again in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
