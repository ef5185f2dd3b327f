import pytest
import torch

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.positional_embedding import SinusoidalPosEmb


def test_the_original_is_reproduced(golden):
    cases = torch.load(golden / "d_components.pt", weights_only=True)["sinusoidal"]
    for case in cases:
        embed = SinusoidalPosEmb(case["dim"])
        for given, expected in (("x", "out"), ("xf", "outf")):
            # A sine is as exact as its angle, whose last bit depends on the processor's exp
            rounding = case[given].abs().max().item() * 2 * torch.finfo(torch.float32).eps
            actual = embed(case[given])
            torch.testing.assert_close(actual, case[expected], rtol=1e-5, atol=1e-6 + rounding)


def test_sines_come_first_then_cosines():
    embedded = SinusoidalPosEmb(8)(torch.tensor([3]))
    expected = [0.14112, 0.138798, 0.0064633, 0.0003, -0.989993, 0.990321, 0.999979, 1.0]
    torch.testing.assert_close(embedded, torch.tensor([expected]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [0, 2, 7])
def test_impossible_sizes_are_refused(dim):
    with pytest.raises(ConfigError, match=f"of {dim} dimensions"):
        SinusoidalPosEmb(dim)
