import pytest
import torch

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion import mask_generator as mg
from diffusion_policy.model.diffusion.mask_generator import (
    DummyMaskGenerator,
    KeypointMaskGenerator,
    LowdimMaskGenerator,
    get_intersection_slice_mask,
    get_union_slice_mask,
)


def test_the_masks_of_the_original_are_reproduced(golden):
    cases = torch.load(golden / "d_mask_generators.pt", weights_only=True)
    assert len(cases) == 32
    for case in cases:
        generator = getattr(mg, case["cls"])(**case["kw"])
        assert torch.equal(generator(tuple(case["shape"]), seed=case["seed"]), case["mask"])


def test_slice_masks():
    slices = [slice(0, 1), slice(1, 3)]
    assert get_intersection_slice_mask((2, 3), slices).tolist() == [
        [False, True, True],
        [False] * 3,
    ]
    assert get_union_slice_mask((2, 3), slices).tolist() == [[True] * 3, [False, True, True]]
    for function in (get_intersection_slice_mask, get_union_slice_mask):
        with pytest.raises(ValueError, match="needs 3 slices, got 2"):
            function((2, 3, 4), slices)


def test_the_dummy_gives_everything():
    assert DummyMaskGenerator()((2, 3)).all()


def test_the_first_observations_are_given_and_no_actions():
    mask = LowdimMaskGenerator(action_dim=2, obs_dim=3, max_n_obs_steps=2)((4, 6, 5))
    expected = torch.zeros(4, 6, 5, dtype=torch.bool)
    expected[:, :2, 2:] = True
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)


def test_visible_actions_end_one_step_before_the_observations():
    mask = LowdimMaskGenerator(2, 3, max_n_obs_steps=3, action_visible=True)((1, 6, 5))
    assert mask[0, :, 0].tolist() == [True, True, False, False, False, False]
    single = LowdimMaskGenerator(2, 3, max_n_obs_steps=1, action_visible=True)((1, 6, 5))
    assert not single[..., :2].any()


def test_without_observation_dimensions_nothing_is_given():
    assert not LowdimMaskGenerator(2, 0)((3, 16, 2)).any()


def test_the_number_of_steps_can_vary_between_one_and_the_maximum():
    generator = LowdimMaskGenerator(1, 1, max_n_obs_steps=3, fix_obs_steps=False)
    steps = generator((200, 6, 2), seed=0)[..., 1].sum(dim=1)
    assert set(steps.tolist()) == {1, 2, 3}
    assert torch.equal(generator((200, 6, 2), seed=0), generator((200, 6, 2), seed=0))
    assert not torch.equal(generator((200, 6, 2), seed=0), generator((200, 6, 2), seed=1))


def test_whole_key_points_are_hidden_at_the_given_rate():
    generator = KeypointMaskGenerator(
        2, 2, max_n_obs_steps=4, keypoint_visible_rate=0.7, context_dim=1
    )
    mask = generator((300, 5, 2 + 18 + 1), seed=1)
    points = mask[..., 2:20].view(300, 5, 9, 2)
    assert torch.equal(points[..., 0], points[..., 1])
    assert torch.equal(points[:, 0], points[:, 3]), "one draw for all steps"
    assert points[:, 0].float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert not points[:, 4].any()
    assert mask[:, 0, -1].all()
    assert not mask[:, 1:, -1].any()
    per_step = KeypointMaskGenerator(2, 2, max_n_obs_steps=4, time_independent=True)
    points = per_step((300, 5, 20), seed=1)[..., 2:]
    assert not torch.equal(points[:, 0], points[:, 3])


@pytest.mark.parametrize(
    "generator",
    [
        LowdimMaskGenerator(2, 3, fix_obs_steps=False),
        KeypointMaskGenerator(1, 2, fix_obs_steps=False),
    ],
)
def test_the_global_generator_is_left_alone(generator):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    generator((3, 6, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(generator.state_dict()) == ["_dummy_variable"]


def test_trajectories_of_another_width_are_refused():
    with pytest.raises(ConfigError, match=r"6 values per step, .* action_dim=2 \+ obs_dim=3"):
        LowdimMaskGenerator(2, 3)((1, 4, 6))
    with pytest.raises(ConfigError, match="no whole number of key points of keypoint_dim=2"):
        KeypointMaskGenerator(2, 2)((1, 4, 5))
    with pytest.raises(ConfigError, match="no whole number"):
        KeypointMaskGenerator(4, 2)((1, 4, 2))
