"""Any environment runner: a policy in, numbers and videos out, the same every time."""

import math
import multiprocessing
import pathlib

import pytest

from diffusion_policy.common.media import VideoFile
from diffusion_policy.config.instantiate import instantiate
from diffusion_policy.env_runner.base_image_runner import BaseImageRunner
from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner


@pytest.fixture
def runner(run, tmp_path):
    runner = instantiate(run.cfg.task.env_runner, output_dir=str(tmp_path))
    yield runner
    runner.close()


def numbers(log):
    return {key: value for key, value in log.items() if not isinstance(value, VideoFile)}


def test_a_rollout_is_scored_and_filmed(runner, policy, tmp_path):
    assert isinstance(runner, BaseLowdimRunner | BaseImageRunner)
    log = runner.run(policy)
    assert 0 <= log["test/mean_score"] <= 1
    assert all(math.isfinite(value) for value in numbers(log).values())
    videos = [value.path for value in log.values() if isinstance(value, VideoFile)]
    for path in videos:
        assert pathlib.Path(path).is_relative_to(tmp_path)
        assert pathlib.Path(path).stat().st_size > 0


def test_the_same_policy_gets_the_same_score_again(runner, policy):
    assert numbers(runner.run(policy)) == numbers(runner.run(policy))


def test_no_process_stays_behind(runner, policy):
    runner.run(policy)
    runner.close()
    assert multiprocessing.active_children() == []


def test_closing_twice_is_harmless(runner):
    runner.close()
    runner.close()
