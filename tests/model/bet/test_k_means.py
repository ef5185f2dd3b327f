"""Actions to bins and back."""

import pytest
import torch

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.model.bet.action_ae.discretizers import k_means as module
from diffusion_policy.model.bet.action_ae.discretizers.k_means import (
    KMeansDiscretizer,
    nearest_center,
)

CORNERS = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])


def four_heaps(n=80):
    """Points around the corners of a square, in turn."""
    return CORNERS.repeat(n // 4, 1) + 0.1 * torch.randn(n, 2)


def fitted(num_bins=4, predict_offsets=True, actions=None, seed=0):
    discretizer = KMeansDiscretizer(2, num_bins, predict_offsets)
    actions = four_heaps() if actions is None else actions
    torch.manual_seed(seed)
    discretizer.fit_discretizer(actions)
    return discretizer


def test_the_centers_are_the_means_of_the_actions_nearest_to_them():
    actions = torch.rand(200, 2)
    discretizer = fitted(6, actions=actions)
    centers = discretizer.bin_centers
    nearest = (actions[:, None] - centers).norm(dim=-1).argmin(dim=1)
    means = torch.stack([actions[nearest == k].mean(dim=0) for k in range(6)])
    torch.testing.assert_close(centers, means)


def test_separate_heaps_get_a_center_each():
    # Lloyd's algorithm finds a local optimum; from the start that this seed draws, the best one.
    centers = fitted(4, seed=0).bin_centers
    assert torch.cdist(CORNERS, centers).amin(dim=1).max() < 0.1


def test_a_seed_decides_the_centers_and_what_is_drawn_next():
    actions = four_heaps()
    first = fitted(seed=3, actions=actions).bin_centers, torch.rand(1)
    again = fitted(seed=3, actions=actions).bin_centers, torch.rand(1)
    other = fitted(seed=4, actions=actions).bin_centers, torch.rand(1)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(3)
    for _ in range(51):
        torch.randperm(len(actions))
    assert torch.equal(first[1], torch.rand(1))


def test_a_cluster_without_actions_starts_again_at_one_of_them():
    actions = torch.cat([torch.zeros(30, 2), torch.ones(1, 2)])  # at most two clusters have members
    centers = fitted(5, actions=actions).bin_centers
    assert ((centers == 0) | (centers == 1)).all()


@pytest.mark.parametrize("shape", [(7, 2), (3, 4, 2), (2, 3, 4, 2)])
@pytest.mark.parametrize("predict_offsets", [True, False])
def test_what_is_encoded_is_decoded(shape, predict_offsets):
    discretizer = fitted(predict_offsets=predict_offsets)
    actions = torch.randn(shape)
    latents = discretizer.encode_into_latent(actions)
    bins, offsets = latents if predict_offsets else (latents, None)
    assert bins.shape == (*shape[:-1], 1)
    assert bins.dtype == torch.int64
    decoded = discretizer.decode_actions(latents)
    if predict_offsets:
        assert offsets.shape == shape
        torch.testing.assert_close(decoded, actions)
    else:
        distance = (actions.unsqueeze(-2) - discretizer.bin_centers).norm(dim=-1)
        torch.testing.assert_close((decoded - actions).norm(dim=-1), distance.amin(dim=-1))


def test_actions_that_are_a_strided_view_are_encoded_too():
    discretizer = fitted()
    actions = torch.randn(2, 5, 6).transpose(0, 1)[..., ::3]
    bins, _ = discretizer.encode_into_latent(actions)
    assert torch.equal(bins, discretizer.encode_into_latent(actions.contiguous())[0])


def test_the_table_of_distances_is_made_in_parts(monkeypatch):
    points, centers = torch.randn(100, 3), torch.randn(9, 3)
    whole = nearest_center(points, centers)
    sizes = []
    cdist = torch.cdist
    monkeypatch.setattr(module, "ROWS_AT_A_TIME", 32)
    monkeypatch.setattr(
        torch, "cdist", lambda a, b, **kw: sizes.append(len(a)) or cdist(a, b, **kw)
    )
    assert torch.equal(nearest_center(points, centers), whole)
    assert sizes == [32, 32, 32, 4]


def test_no_gradient_reaches_the_centers():
    discretizer = fitted()
    actions = torch.randn(5, 2, requires_grad=True)
    assert not any(p.requires_grad for p in discretizer.parameters())
    _, offsets = discretizer.encode_into_latent(actions)
    offsets.sum().backward()
    assert discretizer.bin_centers.grad is None


def test_the_bins_travel_in_the_state_dict_alone():
    source = fitted()
    loaded = KMeansDiscretizer(2, 4, True)
    assert not loaded.is_fitted
    assert list(loaded.state_dict()) == []
    assert list(source.state_dict()) == ["params_dict.bin_centers"]
    loaded.load_state_dict(source.state_dict())
    assert loaded.is_fitted
    assert torch.equal(loaded.suggested_actions, source.bin_centers)
    assert not loaded.bin_centers.requires_grad


def test_the_sizes_of_the_latent_space():
    discretizer = KMeansDiscretizer(2, num_bins=9)
    assert discretizer.num_latents == discretizer.discretized_space == 9
    assert discretizer.latent_dim == 1


def test_a_progress_bar_shows_the_fit(capsys):
    fitted()
    assert "K-means of the actions" in capsys.readouterr().err


def test_fewer_actions_than_bins_are_refused():
    with pytest.raises(DataError, match=r"3 actions for num_bins=4.*num_bins to fewer"):
        fitted(4, actions=torch.rand(3, 2))


def test_actions_that_are_not_finite_are_refused():
    actions = torch.rand(10, 2)
    actions[6, 1] = torch.nan
    with pytest.raises(DataError, match=r"1 actions.*first is number 6"):
        fitted(4, actions=actions)


@pytest.mark.parametrize("call", ["encode_into_latent", "fit_discretizer"])
def test_actions_of_another_width_are_refused(call):
    with pytest.raises(ConfigError, match=r"actions have 3 values.*action_dim=2"):
        getattr(fitted(), call)(torch.rand(10, 3))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        ("encode_into_latent", torch.rand(3, 2)),
        ("decode_actions", torch.zeros(3, 1, dtype=torch.int64)),
    ],
)
def test_using_it_before_the_fit_is_refused(call, argument):
    with pytest.raises(ConfigError, match=r"no bins yet: fit it"):
        getattr(KMeansDiscretizer(2, 4), call)(argument)


@pytest.mark.parametrize("case", range(3))
def test_bins_and_latents_are_those_of_the_reference(golden, case):
    case = torch.load(golden / "i_bet.pt", weights_only=True)["kmeans"][case]
    discretizer = KMeansDiscretizer(case["action_dim"], case["num_bins"], case["predict_offsets"])
    torch.manual_seed(case["fit_seed"])
    discretizer.fit_discretizer(case["actions"])
    assert list(discretizer.state_dict()) == case["state_keys"]
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(discretizer.bin_centers, case["bin_centers"], **close)
    torch.testing.assert_close(discretizer.suggested_actions, case["suggested"], **close)
    latents = discretizer.encode_into_latent(case["a"])
    if not case["predict_offsets"]:
        latents, case["encoded"] = (latents,), (case["encoded"],)
    assert torch.equal(latents[0], case["encoded"][0])
    for ours, reference in zip(latents[1:], case["encoded"][1:], strict=True):
        torch.testing.assert_close(ours, reference, **close)
    decoded = discretizer.decode_actions(latents if case["predict_offsets"] else latents[0])
    torch.testing.assert_close(decoded, case["decoded"], **close)
    no_offset = discretizer.decode_actions(latents[0])
    torch.testing.assert_close(no_offset, case["decoded_no_offset"], **close)
