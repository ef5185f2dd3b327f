"""LSTM-GMM on images: a baseline of the paper (Chi et al. 2023, table II)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffusion_policy.common.robomimic_config_util import get_robomimic_config, set_observations
from diffusion_policy.common.shape_meta import check_encodable
from diffusion_policy.model.vision.crop_randomizer import AlwaysRandomCrop, fitting_crop
from diffusion_policy.policy.base_image_policy import BaseImagePolicy
from diffusion_policy.policy.base_robomimic_policy import BaseRobomimicPolicy


class RobomimicImagePolicy(BaseRobomimicPolicy, BaseImagePolicy):
    """Behaviour cloning by robomimic from images and low-dimensional values.

    As in the published results, images are cropped at random in evaluation, too.

    Args:
        shape_meta: see :mod:`diffusion_policy.common.shape_meta`. The order of ``obs`` counts.
        algo_name, obs_type, task_name, dataset_type: which published settings of robomimic to use;
            see :func:`get_robomimic_config`, where ``obs_type`` is ``hdf5_type``.
        crop_shape: (height, width) of random crops; None for whole images.

    Raises:
        ConfigError: an impossible shape.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        algo_name: str = "bc_rnn",
        obs_type: str = "image",
        task_name: str = "square",
        dataset_type: str = "ph",
        crop_shape: Sequence[int] | None = (76, 76),
    ):
        super().__init__()
        self.set_up_shapes(shape_meta)
        config = get_robomimic_config(algo_name, obs_type, task_name, dataset_type)
        crops: dict[str, AlwaysRandomCrop] = {}
        if crop_shape is not None:
            for camera, shape in self.shapes.rgb.items():
                size = fitting_crop(crop_shape, shape, f"camera {camera!r}")
                crops[camera] = AlwaysRandomCrop(shape, *size)
        set_observations(config, self.shapes, crop_shape)
        self.set_up_robomimic(config, self.shapes, crops)

    def normalized_steps(self, obs: Any) -> dict[str, Tensor]:
        n_steps = max(value.shape[1] for value in obs.values())
        nobs = self.normalized_obs(obs, n_steps)
        check_encodable(self.shapes, {key: value[:, 0] for key, value in nobs.items()})
        return nobs
