"""Tests of the LSTM-GMM policies run twice: with robomimic where it is installed, and everywhere
with a small network that has the same interface.
"""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import distributions as D
from torch import nn

needs_robomimic = pytest.mark.skipif(
    importlib.util.find_spec("robomimic") is None,
    reason="robomimic is not installed (pip install robomimic==0.3.0 six)",
)


@pytest.fixture(params=["stand-in", pytest.param("robomimic", marks=needs_robomimic)])
def backend(request, monkeypatch) -> str:
    """What is below the policies of a test."""
    if request.param == "stand-in":
        replace_robomimic(monkeypatch)
    return request.param


def replace_robomimic(monkeypatch) -> None:
    """Policies made from now on have the small network below them."""
    policies = "diffusion_policy.policy"
    for kind in ("lowdim", "image"):
        module = f"{policies}.robomimic_{kind}_policy"
        monkeypatch.setattr(f"{module}.get_robomimic_config", lambda *names: make_config())
        monkeypatch.setattr(f"{module}.set_observations", lambda *args, **kwargs: None)
    monkeypatch.setattr(f"{policies}.base_robomimic_policy.make_algo", Algo)


def make_config() -> SimpleNamespace:
    enabled = SimpleNamespace(enabled=True)
    return SimpleNamespace(
        algo=SimpleNamespace(rnn=SimpleNamespace(enabled=True, horizon=10), gmm=enabled)
    )


class Encoder(nn.Module):
    """Vectors as they are; of each image a corner of 2x2 pixels."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes
        self.obs_randomizers = nn.ModuleDict()

    def forward(self, obs):
        features = []
        for key in self.shapes.keys:
            value = obs[key]
            if key in self.obs_randomizers:
                value = self.obs_randomizers[key].forward_in(value)
            features.append(value[..., :2, :2].flatten(1) if key in self.shapes.rgb else value)
        return torch.cat(features, dim=-1)

    def width(self) -> int:
        vectors = sum(torch.Size(shape).numel() for shape in self.shapes.low_dim.values())
        return vectors + sum(4 * shape[0] for shape in self.shapes.rgb.values())


class Network(nn.Module):
    """Two layers of LSTM, then five Gaussians."""

    def __init__(self, shapes):
        super().__init__()
        self.width = shapes.action[0]
        encoder = Encoder(shapes)
        self.nets = nn.ModuleDict(
            {
                "encoder": nn.ModuleDict({"nets": nn.ModuleDict({"obs": encoder})}),
                "rnn": nn.LSTM(encoder.width(), 8, num_layers=2, batch_first=True),
                "decoder": nn.Linear(8, 5 * (2 * self.width + 1)),
            }
        )

    def get_rnn_init_state(self, batch_size, device):
        return tuple(torch.zeros(2, batch_size, 8, device=device) for _ in "hc")

    def forward_train(self, obs_dict, goal_dict=None, rnn_state=None):
        size = next(iter(obs_dict.values())).shape[:2]
        encoder = self.nets["encoder"]["nets"]["obs"]
        features = encoder({key: value.flatten(0, 1) for key, value in obs_dict.items()})
        hidden, state = self.nets["rnn"](features.unflatten(0, size), rnn_state)
        mean, scale, logits = self.nets["decoder"](hidden).split(
            [5 * self.width, 5 * self.width, 5], dim=-1
        )
        scale = nn.functional.softplus(scale) if self.training else torch.full_like(scale, 1e-4)
        shape = (*size, 5, self.width)
        gaussians = D.Normal(mean.tanh().reshape(shape), scale.reshape(shape))
        mixture = D.MixtureSameFamily(D.Categorical(logits=logits), D.Independent(gaussians, 1))
        return mixture, state

    def forward_train_step(self, obs_dict, goal_dict=None, rnn_state=None):
        steps = {key: value[:, None] for key, value in obs_dict.items()}
        mixture, state = self.forward_train(steps, rnn_state=rnn_state)
        gaussians = mixture.component_distribution.base_dist
        categorical = D.Categorical(logits=mixture.mixture_distribution.logits[:, 0])
        gaussians = D.Independent(D.Normal(gaussians.loc[:, 0], gaussians.scale[:, 0]), 1)
        return D.MixtureSameFamily(categorical, gaussians), state


class Algo:
    """What the policies use of ``robomimic.algo.BC_RNN_GMM``."""

    def __init__(self, config, shapes):
        self.nets = nn.ModuleDict({"policy": Network(shapes)})
        self.optimizers = {"policy": torch.optim.Adam(self.nets.parameters(), lr=1e-4)}
        self.device = torch.device("cpu")
        self.epochs = []

    def process_batch_for_training(self, batch):
        return batch

    def train_on_batch(self, batch, epoch, validate=False):
        assert validate or self.nets.training
        self.epochs.append(epoch)
        with torch.set_grad_enabled(not validate):
            mixture, _ = self.nets["policy"].forward_train(batch["obs"])
            loss = -mixture.log_prob(batch["actions"]).mean()
        if not validate:
            self.optimizers["policy"].zero_grad()
            loss.backward()
            self.optimizers["policy"].step()
        return {"losses": {"action_loss": loss.detach()}}
