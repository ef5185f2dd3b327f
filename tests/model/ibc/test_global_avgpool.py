import torch
from omegaconf import OmegaConf

from diffusion_policy.model.ibc.global_avgpool import GlobalAvgpool


def test_the_dimensions_are_averaged_and_vanish():
    x = torch.randn(2, 5, 3, 4, 6)
    pooled = GlobalAvgpool(dim=OmegaConf.create([2, 3, 4]))(x)
    torch.testing.assert_close(pooled, x.flatten(2).mean(-1))
    torch.testing.assert_close(GlobalAvgpool(dim=1)(x), x.mean(1))
