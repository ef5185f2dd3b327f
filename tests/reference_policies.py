"""What the original's policies computed, case by case, against ours of the same weights.

A case holds weights, a batch, seeds, and what came of them (golden README).
"""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from reference_weights import draw_by_recipe, overwrite


def make_scheduler(case):
    classes = {cls.__name__: cls for cls in (DDIMScheduler, DDPMScheduler)}
    return classes[case["scheduler"]](**case["scheduler_kw"])


def load_weights(policy, case):
    """Gives a policy the weights and the normalizer of the case."""
    overwrite(policy, draw_by_recipe(case["state_dict_shapes"], case["fill_recipe_seed"]))
    policy.load_state_dict(policy.state_dict() | case["normalizer_state"])
    assert list(policy.state_dict()) == case["state_dict_keys"]


def first_observations(case):
    """Those that the actions are predicted from."""
    n_obs = case["policy_kw"]["n_obs_steps"]
    return {key: value[:, :n_obs] for key, value in case["batch"]["obs"].items()}


def seeded_loss(policy, case):
    torch.manual_seed(case["seed"])
    return policy.compute_loss(case["batch"])


def check_features(policy, case):
    """Of images and vectors, in evaluation mode."""
    with torch.no_grad():
        n_obs = case["policy_kw"]["n_obs_steps"]
        features = policy.eval().encoded_obs(first_observations(case), n_obs).flatten(0, 1)
    torch.testing.assert_close(features, case["encoder_out_eval"], rtol=1e-4, atol=1e-5)


def check_losses(policy, case, rel):
    """In both modes, with gradients.

    Args:
        rel: how far, relatively, the norm of a parameter's gradient may be off.
    """
    loss = seeded_loss(policy.eval(), case)
    torch.testing.assert_close(loss, case["loss_eval"], rtol=1e-4, atol=1e-5)
    loss.backward()
    norms = {n: p.grad.norm().item() for n, p in policy.named_parameters() if p.grad is not None}
    for name, norm in case["grad_norms"].items():
        assert norms.get(name, 0.0) == pytest.approx(norm or 0.0, rel=rel, abs=1e-5), name
    loss = seeded_loss(policy.train(), case)
    torch.testing.assert_close(loss, case["loss_train"], rtol=1e-4, atol=1e-5)


def check_actions(policy, case, obs):
    """After the losses: those in training mode move running statistics."""
    policy.eval()
    torch.manual_seed(case["predict_seed"])
    result = policy.predict_action(obs)
    assert set(result) == set(case["predict"])
    for key, expected in case["predict"].items():
        torch.testing.assert_close(result[key], expected, rtol=1e-3, atol=1e-3)
