"""Behaviour cloning by robomimic, with observations and actions of ours: LSTM-GMM and its kin.

Mandlekar et al. 2021, "What Matters in Learning from Offline Human Demonstrations": an LSTM looks
at one observation at a time and gives a mixture of Gaussians for the next action.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily

from diffusion_policy.common.draws import Draws, Generators
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.robomimic_config_util import make_algo
from diffusion_policy.common.shape_meta import ShapeMeta
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.model.vision.crop_randomizer import AlwaysRandomCrop, crops_drawn_by
from diffusion_policy.policy.base_policy import BasePolicy
from diffusion_policy.policy.episode_memory import EpisodeMemory

logger = logging.getLogger(__name__)


class BaseRobomimicPolicy(BasePolicy):
    """A policy around a ``robomimic.algo.Algo``.

    There is no ``compute_loss``: robomimic steps its own optimizer, in :meth:`train_on_batch`.

    Attributes:
        model: the algorithm; not a module.
        nets: its networks, which are one.
        config: its configuration.
    """

    def set_up_robomimic(
        self, config: Any, shapes: ShapeMeta, crops: dict[str, AlwaysRandomCrop] | None = None
    ) -> None:
        """Second half of a constructor.

        Args:
            config: of robomimic, with these observations.
            crops: per camera, instead of robomimic's: its releases differ in what they do in
                evaluation, and none of them draws from episodes' generators.
        """
        self.config = config
        self.model = make_algo(config, shapes)
        self.nets: nn.ModuleDict = self.model.nets
        self.normalizer = LinearNormalizer()
        for camera, crop in (crops or {}).items():
            self._network.nets["encoder"].nets["obs"].obs_randomizers[camera] = crop
        self._memory = EpisodeMemory(config.algo.rnn.horizon)
        self._warned = False

    @property
    def _network(self) -> Any:
        return self.nets["policy"]

    def _apply(self, *args: Any, **kwargs: Any):
        # All moves to another device come through here; the algorithm moves its batches by this.
        super()._apply(*args, **kwargs)
        self.model.device = self.device
        return self

    def normalized_steps(self, obs: Any) -> dict[str, Tensor]:
        """Raw observations of any number of steps, (B, T, ...) per key, normalised."""
        raise NotImplementedError

    # ---- inference -------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets all episodes."""
        self._memory.forget()

    @torch.no_grad()
    def predict_action(
        self, obs_dict: dict[str, Tensor], generator: Generators = None
    ) -> dict[str, Tensor]:
        """Predicts ``action`` (B, 1, Da), in raw units, from one observation (B, 1, ...) per key.

        An LSTM remembers the observations before, for at most 10 calls. Which ones belong to a row:
        see :class:`EpisodeMemory`.

        Raises:
            ConfigError: the policy is in training mode, or gets several observations at once.
        """
        assert "past_action" not in obs_dict, "past actions as an input are not implemented"
        if self.training:
            raise ConfigError("the policy is in training mode; call eval() before predict_action()")
        nobs = self.normalized_steps(obs_dict)
        for key, value in nobs.items():
            if value.shape[1] != 1:
                raise ConfigError(
                    f"{key!r} has {value.shape[1]} steps, but this policy takes one observation at "
                    "a time and remembers the earlier ones itself; set n_obs_steps=1"
                )
        with crops_drawn_by(self.nets, generator):
            action = self._act({key: value[:, 0] for key, value in nobs.items()}, generator)
        return {"action": self.normalizer["action"].unnormalize(action)[:, None]}

    def _act(self, nobs: dict[str, Tensor], generator: Generators) -> Tensor:
        """Normalised actions (B, Da), for normalised observations (B, ...)."""
        network, is_mixture = self._network, self.config.algo.gmm.enabled
        if not self.config.algo.rnn.enabled:
            outcome = network.forward_train(nobs) if is_mixture else network(nobs)
        else:
            batch_size = len(next(iter(nobs.values())))
            initial = network.get_rnn_init_state(batch_size=batch_size, device=self.device)
            step = network.forward_train_step if is_mixture else network.forward_step
            outcome, state = step(nobs, rnn_state=self._memory.recall(generator, initial))
            self._memory.keep(generator, state)
        return sample_mixture(outcome, generator) if is_mixture else outcome

    # ---- training --------------------------------------------------------------------------------

    def train_on_batch(
        self, batch: dict[str, Any], epoch: int, validate: bool = False
    ) -> dict[str, Any]:
        """One step of robomimic's optimizer.

        Args:
            batch: ``obs`` (B, T, ...) and ``action`` (B, T, Da), in raw units.
            epoch: counted from 0.
            validate: only compute the losses.

        Returns:
            What robomimic reports; ``["losses"]["action_loss"]`` is the negative log-likelihood.

        Raises:
            ConfigError: observations and actions are not of the same steps.
        """
        assert "valid_mask" not in batch, "masked batches are not implemented"
        nobs = self.normalized_steps(batch["obs"])
        naction = self.normalizer["action"].normalize(batch["action"])
        for key, value in nobs.items():
            if value.shape[1] != naction.shape[1]:
                raise ConfigError(
                    f"there are {value.shape[1]} steps of {key!r} but {naction.shape[1]} actions; "
                    "this policy is trained on both of all steps: set dataset_obs_steps to the "
                    "horizon"
                )
        if validate:
            self._warn_of_fixed_scale()
        inputs = self.model.process_batch_for_training({"obs": nobs, "actions": naction})
        return self.model.train_on_batch(inputs, epoch, validate=validate)

    def _warn_of_fixed_scale(self) -> None:
        if not self._warned and not self.training and self.config.algo.gmm.enabled:
            logger.warning(
                "In evaluation mode robomimic fixes the standard deviation of its mixture at 1e-4: "
                "the val_loss of this method is a huge number, not comparable with its train_loss"
            )
            self._warned = True

    def on_epoch_end(self, epoch: int) -> None:
        """Lets robomimic step its own learning-rate schedule (its published settings have none)."""
        self.model.on_epoch_end(epoch)

    def get_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that :meth:`train_on_batch` steps."""
        return self.model.optimizers["policy"]


def sample_mixture(mixture: MixtureSameFamily, generator: Generators) -> Tensor:
    """One sample (B, D) per row of a mixture of K diagonal Gaussians.

    Distributions of torch know the global generator only, which draws as published runs did. Given
    generators draw a number in [0, 1), which decides the component, then D normal ones.
    """
    if generator is None:
        return mixture.sample()
    component: Any = mixture.component_distribution
    loc, scale = component.base_dist.loc, component.base_dist.scale  # (B, K, D)
    rows, n_components, width = loc.shape
    cdf = mixture.mixture_distribution.probs.cumsum(dim=-1)
    draws = Draws(generator, rows, loc.device)
    uniform = draws.uniform(1)
    # Sums of probabilities may end a little below 1.
    chosen = (cdf <= uniform).sum(dim=-1).clamp(max=n_components - 1)
    pick = torch.arange(rows, device=loc.device), chosen
    return loc[pick] + scale[pick] * draws.normal(width).to(loc.dtype)
