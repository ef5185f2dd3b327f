"""Runs of the original: what they logged, saved and then computed, against ours."""

import pathlib
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from runs import LOG, latest, read_log

from diffusion_policy.common.checkpoint_file import load_payload


def by_rounding(key):
    """How far a number of a log may be off, as arguments of pytest.approx."""
    return {"rel": 1e-3, "abs": 1e-5}


class ReferenceRun:
    """One of them.

    Args:
        path: its folder.

    Attributes:
        checkpoint: path of its last one.
        expected: what its policy then computed, and of what.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.checkpoint = latest(path)
        self.expected = torch.load(path / "expected.pt", weights_only=True)

    def config(self, **env_runner):
        """The configuration in its checkpoint, with some options of the environment runner set.

        The original drew the noise of a rollout from the global generator: noise="batch".
        """
        cfg = load_payload(self.checkpoint)["cfg"]
        for key, value in env_runner.items():
            OmegaConf.update(cfg, f"task.env_runner.{key}", value, force_add=True)
        return cfg

    def copy_to(self, run_dir):
        """Log and checkpoint, to be continued."""
        latest(run_dir).parent.mkdir(parents=True)
        shutil.copy(self.checkpoint, latest(run_dir))
        shutil.copy(self.path / LOG, run_dir)

    def check_log(self, run_dir, leave_out=lambda line: set(), tolerance=by_rounding):
        """Line by line the same keys, but for videos, and nearly the same numbers.

        Args:
            leave_out: keys of a line whose numbers are not compared.
            tolerance: of a key; see by_rounding.
        """
        ours, reference = read_log(run_dir), read_log(self.path)
        assert len(ours) == len(reference)
        for line, expected in zip(ours, reference, strict=True):
            assert {key for key in line if "sim_video" not in key} == expected.keys()
            for key in expected.keys() - leave_out(expected):
                close = pytest.approx(expected[key], **tolerance(key))
                assert line[key] == close, (key, expected["epoch"])

    def check_policy(self, policy, batch=None):
        """The actions, and the loss of a batch, at the same seeds as then."""
        expected = self.expected
        policy.eval()
        torch.manual_seed(expected["seed_predict"])
        result = policy.predict_action(expected["obs"])
        for key, value in expected["predict"].items():
            torch.testing.assert_close(result[key], value, rtol=1e-3, atol=0.05)
        torch.manual_seed(expected["seed_loss"])
        loss = policy.compute_loss(expected["batch"] if batch is None else batch)
        torch.testing.assert_close(loss, expected["loss_eval_mode"], rtol=1e-4, atol=1e-5)
