"""What needs no robomimic: samples of a mixture of Gaussians."""

import torch
from generators import seeded
from torch import distributions as D

from diffusion_policy.policy.base_robomimic_policy import sample_mixture


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
