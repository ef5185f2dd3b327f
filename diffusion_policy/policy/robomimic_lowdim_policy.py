"""LSTM-GMM on low-dimensional observations: a baseline of the paper (Chi et al. 2023, table I)."""

from typing import Any

from torch import Tensor

from diffusion_policy.common.robomimic_config_util import get_robomimic_config, set_observations
from diffusion_policy.common.shape_meta import ShapeMeta
from diffusion_policy.policy.base_lowdim_policy import BaseLowdimPolicy
from diffusion_policy.policy.base_robomimic_policy import BaseRobomimicPolicy


class RobomimicLowdimPolicy(BaseRobomimicPolicy, BaseLowdimPolicy):
    """Behaviour cloning by robomimic from one vector per step.

    Args:
        action_dim: Da. obs_dim: Do.
        algo_name, obs_type, task_name, dataset_type: which published settings of robomimic to use;
            see :func:`get_robomimic_config`, where ``obs_type`` is ``hdf5_type``.
    """

    def __init__(
        self,
        action_dim: int,
        obs_dim: int,
        algo_name: str = "bc_rnn",
        obs_type: str = "low_dim",
        task_name: str = "square",
        dataset_type: str = "ph",
    ):
        super().__init__()
        config = get_robomimic_config(algo_name, obs_type, task_name, dataset_type)
        self.obs_key = "obs"
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        shapes = ShapeMeta({}, {self.obs_key: (obs_dim,)}, (action_dim,), keys=(self.obs_key,))
        set_observations(config, shapes, crop_shape=None)
        self.set_up_robomimic(config, shapes)

    def normalized_steps(self, obs: Any) -> dict[str, Tensor]:
        obs = obs if isinstance(obs, dict) else {self.obs_key: obs}  # a batch holds it bare
        self.check_widths(obs)
        return {self.obs_key: self.normalizer["obs"].normalize(obs[self.obs_key])}
