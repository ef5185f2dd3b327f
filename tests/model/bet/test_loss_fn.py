"""Focal loss and soft cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.bet.libraries.loss_fn import (
    FocalLoss,
    focal_loss,
    soft_cross_entropy,
)

X = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3], [-1.0, 3.0, 1.0], [1.0, 1.0, 1.0]])
Y = torch.tensor([0, 2, -100, 1])
KEPT = [0, 1, 3]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_focus_it_is_cross_entropy(reduction):
    expected = F.cross_entropy(X, Y, reduction=reduction)
    expected = expected[KEPT] if reduction == "none" else expected
    torch.testing.assert_close(FocalLoss(reduction=reduction)(X, Y), expected)


def test_the_formula():
    p = X.softmax(dim=-1)[KEPT, Y[KEPT]]
    alpha = torch.tensor([1.0, 2.0, 3.0])
    expected = -alpha[Y[KEPT]] * (1 - p) ** 2 * p.log()
    loss = focal_loss(alpha=[1, 2, 3], gamma=2.0, reduction="none")
    torch.testing.assert_close(loss(X, Y), expected)
    mean = focal_loss(alpha=alpha, gamma=2.0)(X, Y)
    torch.testing.assert_close(mean, expected.mean())


def test_more_dimensions_are_more_rows():
    x, y = torch.randn(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4))
    rows = x.permute(0, 2, 3, 1).reshape(-1, 5)
    torch.testing.assert_close(
        FocalLoss(gamma=2.0, reduction="none")(x, y),
        FocalLoss(gamma=2.0, reduction="none")(rows, y.flatten()),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_is_zero_when_every_row_is_ignored(reduction):
    x = X.clone().requires_grad_()
    loss = FocalLoss(gamma=2.0, reduction=reduction)(x, torch.full_like(Y, -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(X))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_ignored_rows_leave_no_trace_in_the_gradient(gamma):
    x = X.clone().requires_grad_()
    FocalLoss(gamma=gamma)(x, Y).backward()
    kept = X[KEPT].clone().requires_grad_()
    FocalLoss(gamma=gamma)(kept, Y[KEPT]).backward()
    torch.testing.assert_close(x.grad[KEPT], kept.grad)
    assert torch.equal(x.grad[2], torch.zeros(3))


def test_the_weights_are_not_part_of_a_state_dict():
    assert focal_loss(alpha=[1.0, 2.0]).state_dict() == {}


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ConfigError, match=r"'median'.*mean.*sum.*none"):
        FocalLoss(reduction="median")


def test_soft_cross_entropy_is_the_divergence_from_the_target():
    target = torch.rand(4, 3).softmax(dim=-1)
    log_q = X.log_softmax(dim=-1)
    expected = (target * (target.log() - log_q)).sum() / 4
    torch.testing.assert_close(soft_cross_entropy(X, target), expected)
    torch.testing.assert_close(soft_cross_entropy(target.log(), target), torch.tensor(0.0))


@pytest.mark.parametrize("case", range(9))
def test_focal_losses_are_those_of_the_reference(golden, case):
    case = torch.load(golden / "i_bet.pt", weights_only=True)["focal"][case]
    loss = FocalLoss(gamma=case["gamma"], reduction=case["reduction"])(case["x"], case["y"])
    torch.testing.assert_close(loss, case["out"], rtol=1e-4, atol=1e-5)


def test_soft_cross_entropy_is_that_of_the_reference(golden):
    case = torch.load(golden / "i_bet.pt", weights_only=True)["soft_ce"]
    loss = soft_cross_entropy(case["x"], case["t"])
    torch.testing.assert_close(loss, case["out"], rtol=1e-4, atol=1e-5)
