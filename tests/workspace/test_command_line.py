"""What happens to a command line before Hydra sees it."""

import pytest

from diffusion_policy.workspace.command_line import OPTIONS, _name_job, complete_overrides


def test_our_own_options_need_no_plus():
    given = [
        "--config-name=x",
        "training.num_processes=2",
        "training.seed=1",
        "x=training.num_processes=3",
    ]
    assert complete_overrides(given) == [given[0], "++training.num_processes=2", *given[2:]]


@pytest.mark.parametrize("prefix", ["+", "++", "~"])
def test_a_prefix_that_is_there_stays(prefix):
    given = [f"{prefix}{name}=1" for name in OPTIONS]
    assert complete_overrides(given) == given


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--config-name=x"], ["--config-name=x", "hydra.job.name=train"]),
        (["--config-name", "x", "a=1"], ["--config-name", "x", "hydra.job.name=train", "a=1"]),
        (
            ["a=1", "b=2", "--config-name=x"],
            ["hydra.job.name=train", "a=1", "b=2", "--config-name=x"],
        ),
        (["hydra.job.name=mine", "a=1"], ["hydra.job.name=mine", "a=1"]),
    ],
)
def test_the_job_is_named_beside_the_other_overrides(given, named):
    assert _name_job(given, "train") == named
