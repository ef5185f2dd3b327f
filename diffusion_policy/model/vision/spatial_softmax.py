"""Spatial softmax: from feature maps to the image coordinates of what they respond to.

Finn et al. 2016, "Deep Spatial Autoencoders for Visuomotor Learning"; Levine et al. 2016,
"End-to-End Training of Deep Visuomotor Policies", section 5.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_policy.common.draws import draw_rows


class SpatialSoftmax(nn.Module):
    """Keypoints of a feature map, with the state dict of robomimic's class of this name.

    Args:
        input_shape: (C, H, W) of the feature map.
        num_kp: K, number of keypoints.
    """

    temperature: Tensor
    pos_x: Tensor
    pos_y: Tensor

    def __init__(self, input_shape: Sequence[int], num_kp: int = 32):
        super().__init__()
        channels, height, width = input_shape
        self.nets = nn.Conv2d(channels, num_kp, kernel_size=1)
        pos_x, pos_y = pixel_positions(height, width)
        self.register_buffer("temperature", torch.ones(1))
        self.register_buffer("pos_x", pos_x)
        self.register_buffer("pos_y", pos_y)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, 2), (x, y) in [-1, 1]."""
        logits = self.nets(features)
        keypoints = expected_positions(logits, self.pos_x, self.pos_y, self.temperature)
        if self.training:
            # robomimic adds noise of standard deviation 0. The draw remains, since every random
            # number after it depends on it.
            one = keypoints[:1]
            draw_rows(lambda n: torch.randn_like(one.expand(n, -1, -1)), len(keypoints))
        return keypoints


def expected_positions(
    logits: Tensor, pos_x: Tensor, pos_y: Tensor, temperature: Tensor | float = 1.0
) -> Tensor:
    """Mean position under the softmax of each map.

    Args:
        logits: (B, K, H, W).
        pos_x, pos_y: (1, H * W) coordinates of the pixels.

    Returns:
        (B, K, 2), (x, y).
    """
    attention = torch.softmax(logits.flatten(2) / temperature, dim=-1)
    # Products and sums rather than a matrix product: autocast leaves them in full precision.
    return torch.stack([(attention * pos_x).sum(-1), (attention * pos_y).sum(-1)], dim=-1)


def pixel_positions(
    height: int, width: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """x and y of every pixel, row by row, (1, H * W) each; both go from -1 to 1."""
    ys = torch.linspace(-1, 1, height, device=device)
    xs = torch.linspace(-1, 1, width, device=device)
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    return grid_x.reshape(1, -1), grid_y.reshape(1, -1)
