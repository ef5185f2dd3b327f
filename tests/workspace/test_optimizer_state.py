"""States of optimizers that torch takes, and fails with later."""

import copy

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.workspace.optimizer_state import check_optimizer

PARAMETERS = {"AdamW": {}, "Adam": {"amsgrad": True}, "SGD": {"lr": 0.1, "momentum": 0.9}}


def make(name):
    model = torch.nn.Linear(3, 2)
    optimizer = getattr(torch.optim, name)(model.parameters(), **PARAMETERS[name])
    model(torch.ones(4, 3)).sum().backward()
    return optimizer


def load(optimizer, state):
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    check_optimizer(optimizer, before)


@pytest.mark.parametrize("name", PARAMETERS)
def test_states_of_training_are_fine(name):
    trained, new = make(name), make(name)
    load(new, trained.state_dict())  # before its first step
    trained.step()
    load(new, trained.state_dict())
    new.step()


def test_a_scheduled_rate_and_lists_of_a_configuration_are_fine():
    optimizer, new = make("AdamW"), make("AdamW")
    optimizer.step()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)  # adds initial_lr
    state = optimizer.state_dict()
    state["param_groups"][0]["betas"] = OmegaConf.create([0.95, 0.999])
    load(new, state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["param_groups"][0].update(lr="x"), "lr of parameter group 0 is 'x'"),
        (lambda s: s["param_groups"][0].update(lr=float("nan")), "lr of parameter group 0"),
        (lambda s: s["param_groups"][0].update(lr=True), "lr of parameter group 0"),
        (lambda s: s["param_groups"][0].update(betas=(0.9,)), "betas of parameter group 0"),
        (lambda s: s["param_groups"][0].update(betas="ab"), "betas of parameter group 0"),
        (lambda s: s["param_groups"][0].update(betas=(0.9, None)), "betas of parameter group 0"),
        (lambda s: s["param_groups"][0].update(maximize=[1]), "maximize of parameter group 0"),
        (lambda s: s["param_groups"][0].pop("eps"), "eps of parameter group 0 is None"),
        (lambda s: s["state"][0].update(step="x"), "step of parameter 0|not convert"),
        (lambda s: s["state"][0].update(step=torch.tensor(-1.0)), "step of parameter 0"),
        (
            lambda s: s["state"][1].update(exp_avg=torch.zeros(7)),
            r"exp_avg of parameter 1 .* \[7\]",
        ),
        (lambda s: s["state"][1].update(exp_avg=[[torch.zeros(2)]]), "exp_avg of parameter 1"),
        (lambda s: s["state"][1].update(exp_avg=None, x=b"x"), "x of parameter 1"),
    ],
)
def test_what_cannot_be_is_named(change, said):
    trained, new = make("AdamW"), make("AdamW")
    trained.step()
    state = copy.deepcopy(trained.state_dict())
    change(state)
    with pytest.raises(ValueError, match=said):
        load(new, state)
