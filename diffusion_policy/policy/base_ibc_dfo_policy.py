"""Implicit behaviour cloning, optimised without derivatives (Florence et al. 2021, IBC-DFO).

A network scores pairs of observation and action sequence; the score is the negative energy of the
paper. Training teaches it to tell the demonstrated actions from random ones, inference searches for
actions of a high score. What an observation is, a vector or features of images, is a matter of the
policies built on this.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_policy.common.draws import Draws, Generators, draw_rows
from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.policy.base_policy import BasePolicy

# Part of the method: no configuration changes them.
WIDTH = 1024  # of the network
POSITIVE_STD = 1e-4  # of the noise on demonstrated actions, in normalised units
RESAMPLING_STD = 0.03  # of the noise on resampled actions, in normalised units


class BaseIbcDfoPolicy(BasePolicy):
    """Scores actions, and searches for good ones by resampling.

    ``pred_n_iter`` and ``pred_n_samples`` are read when they are used: robot scripts change them on
    a loaded policy.
    """

    #: Da; set before :meth:`set_up_energy`.
    action_dim: int

    def set_up_energy(
        self,
        *,
        obs_feature_dim: int,
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        dropout: float = 0.1,
        train_n_neg: int = 128,
        pred_n_iter: int = 5,
        pred_n_samples: int = 16384,
        kevin_inference: bool = False,
        andy_train: bool = False,
    ) -> None:
        """Second half of a constructor.

        Not ``__init__``: published optimizer states count parameters in the order of registration,
        and an observation encoder comes before what is registered here.

        Args:
            obs_feature_dim: Do, of one observation as the network sees it.
            horizon: T. n_action_steps: Ta, actions scored together. n_obs_steps: To.
            dropout: probability, behind each hidden layer.
            train_n_neg: random actions that the demonstrated ones are told from.
            pred_n_iter: rounds of the search, each a scoring of all samples. pred_n_samples: N,
                actions per round.
            kevin_inference: see :meth:`search`.
            andy_train: no effect; the original wrote the same loss in another way.
        """
        n_inputs = n_obs_steps * obs_feature_dim + n_action_steps * self.action_dim
        self.dense0 = nn.Linear(n_inputs, WIDTH)
        self.drop0 = nn.Dropout(dropout)
        self.dense1 = nn.Linear(WIDTH, WIDTH)
        self.drop1 = nn.Dropout(dropout)
        self.dense2 = nn.Linear(WIDTH, WIDTH)
        self.drop2 = nn.Dropout(dropout)
        self.dense3 = nn.Linear(WIDTH, WIDTH)
        self.drop3 = nn.Dropout(dropout)
        self.dense4 = nn.Linear(WIDTH, 1)
        self.normalizer = LinearNormalizer()
        self.horizon = horizon
        self.n_action_steps = n_action_steps
        self.n_obs_steps = n_obs_steps
        self.train_n_neg = train_n_neg
        self.pred_n_iter = pred_n_iter
        self.pred_n_samples = pred_n_samples
        self.kevin_inference = kevin_inference
        self.andy_train = andy_train

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Scores of N action sequences per observation.

        Args:
            obs: (B, To, Do). action: (B, N, Ta, Da). Both normalised.

        Returns:
            (B, N) unnormalised log-probabilities.

        Raises:
            ConfigError: there are more or fewer values than the policy was built for.
        """
        x = torch.cat(
            [obs.flatten(1)[:, None].expand(-1, action.shape[1], -1), action.flatten(2)], dim=-1
        )
        if x.shape[-1] != self.dense0.in_features:
            raise ConfigError(
                f"the policy scores {self.dense0.in_features} values, n_obs_steps="
                f"{self.n_obs_steps} observations and n_action_steps={self.n_action_steps} "
                f"actions of {self.action_dim} values, but was given observations "
                f"{list(obs.shape[1:])} and actions {list(action.shape[2:])} (steps, values); "
                "give it windows of that length, or build it for these"
            )
        x = self.drop0(F.relu(self.dense0(x)))
        x = self.drop1(F.relu(self.dense1(x)))
        x = self.drop2(F.relu(self.dense2(x)))
        x = self.drop3(F.relu(self.dense3(x)))
        return self.dense4(x).squeeze(-1)

    def get_naction_stats(self) -> dict[str, Tensor]:
        """Statistics of the normalised actions, each (Da,): ``min`` and ``max`` bound the search.

        Raises:
            ConfigError: the normalizer was fitted on actions of another width.
        """
        stats = self.normalizer["action"].get_output_stats()
        width = len(stats["min"])
        if self.action_dim % width:
            raise ConfigError(
                f"the normalizer was fitted on actions of {width} values, the policy was built "
                f"for {self.action_dim}; use the data set or the checkpoint that belongs to this "
                "configuration"
            )
        return {key: value.repeat(self.action_dim // width) for key, value in stats.items()}

    # ---- inference -------------------------------------------------------------------------------

    def search(self, obs: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """Finds good actions (Florence et al. 2021, algorithm 1).

        Starts from uniform samples. A round replaces the samples by draws from among them, likely
        ones more often, and moves each a little. The result is one more draw, after
        ``pred_n_iter - 1`` rounds; with ``kevin_inference`` samples are kept within the bounds, and
        the result is the best one after ``pred_n_iter`` rounds.

        Args:
            obs: (B, To, Do), normalised. generator: see :meth:`predict_action`.

        Returns:
            ``action`` (B, Ta, Da) in raw units.
        """
        draws = Draws(generator, len(obs), obs.device)
        bounds = self.get_naction_stats()
        low, high = bounds["min"], bounds["max"]
        shape = (self.pred_n_samples, self.n_action_steps, self.action_dim)
        samples = _between(low, high, draws.uniform(*shape))
        for _ in range(self.pred_n_iter if self.kevin_inference else self.pred_n_iter - 1):
            survivors = draws.choice(self._probabilities(obs, samples), self.pred_n_samples)
            samples = _take(samples, survivors) + RESAMPLING_STD * draws.normal(*shape)
            if self.kevin_inference:
                samples = samples.clamp(low, high)
        probabilities = self._probabilities(obs, samples)
        if self.kevin_inference:
            chosen = probabilities.argmax(dim=-1, keepdim=True)
        else:
            chosen = draws.choice(probabilities, 1)
        naction = _take(samples, chosen)[:, 0]
        return {"action": self.normalizer["action"].unnormalize(naction)}

    def _probabilities(self, obs: Tensor, samples: Tensor) -> Tensor:
        """(B, N), of each sample among those of its row.

        Raises:
            DiffusionPolicyError: a score is NaN or infinite.
        """
        # Row by row: the hidden layers of all rows at once take gigabytes (B * N * 1024 floats),
        # and a row is computed alike in every batch.
        rows = zip(obs.split(1), samples.split(1), strict=True)
        scores = torch.cat([self(*row) for row in rows])
        if not scores.isfinite().all():  # drawing would fail, on a GPU for the rest of the process
            raise DiffusionPolicyError(
                "the policy's scores of actions are NaN or infinite: its weights or its normalizer "
                "are broken, or there is a NaN in the observations; use an earlier checkpoint, or "
                "mend the observations"
            )
        return scores.softmax(dim=-1)

    # ---- training --------------------------------------------------------------------------------

    def info_nce_loss(self, obs: Tensor, naction: Tensor) -> Tensor:
        """Cross-entropy of picking the demonstrated actions among random ones (InfoNCE:
        Florence et al. 2021, section 2).

        Args:
            obs: (B, To, Do). naction: (B, T, Da), of which those that would be executed count.
                Both normalised.

        Returns:
            Scalar loss. Random draws: noise on the demonstrated actions, the random actions, then
            dropout.
        """
        bounds = self.get_naction_stats()
        start = self.n_obs_steps - 1
        positive = naction[:, start : start + self.n_action_steps]
        rows, shape, device = len(positive), positive.shape[1:], positive.device
        noise = draw_rows(lambda n: torch.randn(n, *shape, device=device), rows)
        positive = positive + POSITIVE_STD * noise
        u = draw_rows(lambda n: torch.rand(n, self.train_n_neg, *shape, device=device), rows)
        negatives = _between(bounds["min"], bounds["max"], u)
        scores = self(obs, torch.cat([positive[:, None], negatives], dim=1))
        target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        return F.cross_entropy(scores, target)


def _between(low: Tensor, high: Tensor, u: Tensor) -> Tensor:
    """U(0, 1) stretched to [low, high], as ``torch.distributions.Uniform`` does it, which refuses
    dimensions that never move."""
    return low + u * (high - low)


def _take(samples: Tensor, indices: Tensor) -> Tensor:
    """Samples (B, N, ...) at indices (B, n) of their row: (B, n, ...)."""
    rows = torch.arange(len(samples), device=samples.device)
    return samples[rows[:, None], indices]
