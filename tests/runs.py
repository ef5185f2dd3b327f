"""Runs of training: making one, reading what it left behind, comparing it with another."""

import json

import pytest
import torch

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.safe_pickle import safe_loads
from diffusion_policy.config.targets import locate

LOG = "logs.json.txt"


def build(cfg, run_dir):
    """The workspace that a configuration names, as train.py makes it."""
    return locate(cfg._target_)(cfg, output_dir=str(run_dir))


def train(cfg, run_dir):
    """The workspace of a finished run."""
    workspace = build(cfg, run_dir)
    workspace.run()
    return workspace


def train_until(stop, cfg, run_dir):
    """A run that ends, as by Ctrl-C, before the first batch at which stop(workspace) holds."""
    workspace = build(cfg, run_dir)
    train_step = workspace.train_step

    def step(batch):
        if stop(workspace):
            raise KeyboardInterrupt
        return train_step(batch)

    workspace.train_step = step
    with pytest.raises(KeyboardInterrupt):
        workspace.run()
    workspace.wait_for_checkpoints()


# ---- what a run leaves behind --------------------------------------------------------------------


def read_lines(path):
    """The records of a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_log(run_dir):
    return read_lines(run_dir / LOG)


def latest(run_dir):
    """Path of the last checkpoint."""
    return run_dir / "checkpoints" / "latest.ckpt"


def read_state(run_dir, trust=False):
    """(state dicts, pickles) of the last checkpoint: all that a run continues with."""
    payload = load_payload(latest(run_dir), trust=trust)
    pickles = {key: safe_loads(data) for key, data in payload["pickles"].items()}
    del pickles["_output_dir"]
    return payload["state_dicts"], pickles


def assert_equal(a, b, path=""):
    """Bitwise: every tensor and number of two nested states."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    elif torch.is_tensor(a):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def assert_same_outcome(run_dir, other):
    """Bitwise: what two runs continue with, and their logs."""
    assert_equal(read_state(run_dir), read_state(other))
    assert (run_dir / LOG).read_bytes() == (other / LOG).read_bytes()
