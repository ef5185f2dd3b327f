"""Random numbers and memories that stay with an episode, wherever it stands in a batch."""

import pytest
import torch
from torch import distributions as D

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.vision.crop_randomizer import AlwaysRandomCrop
from diffusion_policy.policy.base_robomimic_policy import sample_mixture
from diffusion_policy.policy.episode_rows import EpisodeCrop, EpisodeMemory

CPU = torch.device("cpu")
INITIAL = (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def state(value):
    """LSTM states of as many rows as there are values, told apart by them."""
    h = torch.tensor(value, dtype=torch.float32)[None, :, None].expand(2, -1, 4)
    return h, -h


def rows(memory, generator, n):
    """What the rows remember."""
    h, c = memory.recall(generator, tuple(part[:, :n] for part in INITIAL))
    assert torch.equal(c, -h)
    assert h.shape == (2, n, 4)
    return h[0, :, 0].tolist()


def test_a_state_follows_its_episode_to_other_rows_and_batches():
    memory = EpisodeMemory(10)
    a, b, c = seeded(0, 0, 0)  # equal seeds, and yet different episodes
    assert rows(memory, [a, b], 2) == [0, 0]
    memory.keep([a, b], state([1, 2]))
    assert rows(memory, [c, b, a], 3) == [0, 2, 1]
    memory.keep([b], state([3]))
    assert rows(memory, [a, b], 2) == [1, 3]


def test_each_episode_counts_its_own_calls_until_its_state_starts_anew():
    memory = EpisodeMemory(3)
    a, b = seeded(0, 1)
    memory.keep([a], state([1]))
    memory.keep([a, b], state([2, 2]))
    assert rows(memory, [a, b], 2) == [2, 2]
    memory.keep([a, b], state([3, 3]))
    assert rows(memory, [a, b], 2) == [0, 3]
    memory.keep([a, b], state([4, 4]))
    assert rows(memory, [a, b], 2) == [4, 0]


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_without_a_generator_per_row_all_rows_are_one_group_of_episodes(generator):
    memory = EpisodeMemory(10)
    memory.keep(generator, state([1, 2, 3]))
    assert rows(memory, generator, 3) == [1, 2, 3]
    with pytest.raises(
        ConfigError, match=r"batch of 3 episodes is followed by one of 2; call reset"
    ):
        rows(memory, generator, 2)
    memory.forget()
    assert rows(memory, generator, 2) == [0, 0]


def test_a_group_that_starts_anew_may_have_another_size():
    memory = EpisodeMemory(1)
    memory.keep(None, state([1, 2, 3]))
    assert rows(memory, None, 2) == [0, 0]


def test_the_state_of_an_episode_goes_with_its_generator():
    memory = EpisodeMemory(10)
    generators = seeded(0, 1)
    memory.keep(generators, state([1, 2]))
    del generators[1]
    assert len(memory._kept) == 1


def test_crops_of_episodes_do_not_depend_on_the_other_rows():
    images = torch.rand(3, 3, 12, 10)
    crop = EpisodeCrop((3, 12, 10), 6, 5).eval()
    crop.generator = seeded(1, 2, 3)
    together = crop(images)
    assert together.shape == (3, 3, 6, 5)
    for i, seed in enumerate((1, 2, 3)):
        crop.generator = seeded(seed)
        assert torch.equal(crop(images[i : i + 1]), together[i : i + 1])


def test_crops_of_episodes_reach_all_places_that_crops_in_training_reach():
    image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    crop = EpisodeCrop((3, 4, 4), 2, 1).eval()
    crop.generator = seeded(0)
    corners = {int(crop(image)[0, 0, 0, 0]) for _ in range(200)}
    assert corners == {0, 1, 2, 4, 5, 6}  # row 0 or 1, column 0 to 2


@pytest.mark.parametrize("training", [True, False])
def test_without_generators_crops_are_random_as_ever(training):
    images = torch.rand(3, 3, 12, 10)
    results = []
    for cls in (EpisodeCrop, AlwaysRandomCrop):
        torch.manual_seed(3)
        results.append(cls((3, 12, 10), 6, 5).train(training)(images))
    assert torch.equal(*results)


def mixture(weights, loc, scale):
    components = D.Independent(D.Normal(torch.tensor(loc), torch.tensor(scale)), 1)
    return D.MixtureSameFamily(D.Categorical(probs=torch.tensor(weights)), components)


def test_samples_have_the_weights_means_and_deviations_of_the_mixture():
    n = 4000
    one = mixture(
        [[0.2, 0.5, 0.3]] * n,
        [[[-3.0, 1.0], [0.0, 2.0], [5.0, 3.0]]] * n,
        [[[0.1, 0.2], [0.3, 0.1], [0.2, 0.4]]] * n,
    )
    samples = sample_mixture(one, torch.Generator().manual_seed(0))
    assert samples.shape == (n, 2)
    near = (samples[:, :1] - torch.tensor([-3.0, 0.0, 5.0])).abs().argmin(dim=1)
    shares = torch.bincount(near, minlength=3) / n
    assert torch.allclose(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.03)
    middle = samples[near == 1]
    assert torch.allclose(middle.mean(0), torch.tensor([0.0, 2.0]), atol=0.03)
    assert torch.allclose(middle.std(0), torch.tensor([0.3, 0.1]), atol=0.02)


def test_a_sample_depends_on_its_row_and_generator_only():
    weights = torch.rand(3, 4).tolist()
    loc, scale = torch.randn(3, 4, 2).tolist(), torch.rand(3, 4, 2).tolist()
    together = sample_mixture(mixture(weights, loc, scale), seeded(4, 5, 6))
    for i, seed in enumerate((4, 5, 6)):
        alone = mixture(weights[i : i + 1], loc[i : i + 1], scale[i : i + 1])
        assert torch.equal(sample_mixture(alone, seeded(seed))[0], together[i])


def test_components_of_no_weight_are_never_chosen():
    one = mixture([[0.0, 1.0, 0.0]] * 500, [[[-1.0], [0.0], [1.0]]] * 500, [[[1e-4]] * 3] * 500)
    assert sample_mixture(one, torch.Generator().manual_seed(0)).abs().max() < 0.01


def test_without_a_generator_the_distribution_samples_as_torch_does():
    one = mixture([[0.5, 0.5]] * 4, [[[-1.0], [1.0]]] * 4, [[[0.5], [0.5]]] * 4)
    torch.manual_seed(0)
    expected = one.sample()
    torch.manual_seed(0)
    assert torch.equal(sample_mixture(one, None), expected)
