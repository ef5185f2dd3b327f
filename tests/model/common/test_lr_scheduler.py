import json
import math

import numpy as np
import pytest
import torch

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.common.lr_scheduler import get_scheduler


def curve(name, steps, lr=1e-4, **options):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    if "last_epoch" in options:
        optimizer.param_groups[0]["initial_lr"] = lr
    scheduler = get_scheduler(name, optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def test_all_curves_of_the_original_are_reproduced(golden):
    reference = json.loads((golden / "d_lr_schedules.json").read_text())
    assert {case["name"] for case in reference["curves"]} >= {"cosine", "linear", "polynomial"}
    for case in reference["curves"]:
        rates = curve(case["name"], len(case["curve"]), case["base_lr"], **case["kwargs"])
        np.testing.assert_allclose(rates, case["curve"], rtol=1e-9, atol=1e-18)
    for name, options, error in reference["errors"]:
        assert error == "ValueError"
        with pytest.raises(ValueError):
            curve(name, 1, **options)


def test_the_numbers_of_the_specification():
    rates = curve("cosine", 101, num_warmup_steps=10, num_training_steps=100)
    expected = [0, 1e-5, 5e-5, 1e-4, 5e-5, 3.04586e-8, 0]
    np.testing.assert_allclose(rates[[0, 1, 5, 10, 55, 99, 100]], expected, rtol=1e-5, atol=1e-18)


@pytest.mark.parametrize(
    ("name", "halfway"),
    [
        ("linear", 0.5),
        ("cosine", 0.5 * (1 + math.cos(math.pi / 2))),
        ("cosine_with_restarts", 0.5),
        ("polynomial", (0.5 * (1 - 1e-7) + 1e-7)),
        ("constant_with_warmup", 1.0),
    ],
)
def test_warm_up_rises_from_zero_and_then_the_formula_holds(name, halfway):
    options = {"num_warmup_steps": 10}
    if name != "constant_with_warmup":
        options["num_training_steps"] = 30
    rates = curve(name, 30, lr=1.0, **options)
    np.testing.assert_allclose(rates[:10], np.arange(10) / 10)
    np.testing.assert_allclose(rates[20], halfway, rtol=1e-6)


def test_constant_needs_nothing():
    np.testing.assert_array_equal(curve("constant", 5, lr=0.3), 0.3)


def test_restarts_jump_back_to_the_full_rate():
    rates = curve(
        "cosine_with_restarts", 61, 1.0, num_warmup_steps=0, num_training_steps=60, num_cycles=3
    )
    np.testing.assert_allclose(rates[[0, 20, 40, 60]], [1, 1, 1, 0])


@pytest.mark.parametrize("name", ["cosine", "linear", "polynomial", "cosine_with_restarts"])
def test_a_resumed_schedule_continues_the_curve(name):
    options = {"num_warmup_steps": 4, "num_training_steps": 40}
    whole = curve(name, 40, **options)
    resumed = curve(name, 30, last_epoch=9, **options)
    np.testing.assert_allclose(resumed, whole[10:], rtol=1e-9)


def test_state_can_be_saved_and_loaded():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler("cosine", optimizer, 2, 10)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    twin = get_scheduler(
        "cosine", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 2, 10
    )
    twin.load_state_dict(state)
    assert twin.get_last_lr() == scheduler.get_last_lr()


def test_bad_requests_say_what_is_missing():
    with pytest.raises(ConfigError, match=r"'warm'; it can be one of \['constant'"):
        curve("warm", 1)
    with pytest.raises(ConfigError, match="'cosine' needs num_training_steps"):
        curve("cosine", 1, num_warmup_steps=3)
    with pytest.raises(ConfigError, match="'constant_with_warmup' needs num_warmup_steps"):
        curve("constant_with_warmup", 1)
    with pytest.raises(ConfigError, match="lr_end"):
        curve("polynomial", 1, num_warmup_steps=1, num_training_steps=3, lr_end=1.0)
