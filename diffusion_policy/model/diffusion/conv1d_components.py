"""Building blocks of the 1-D U-Net: sequences are (B, C, T), channels before time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShortConv1d(nn.Conv1d):
    """``nn.Conv1d`` that computes short sequences on the CPU as one matrix product.

    Same parameters, same result up to rounding. The windows of the sequence are laid out next to
    each other in the order in which the weights lie in memory. The library routines are made for
    long sequences: measured on two CPU cores at the 4 to 8 steps of the deeper levels of a U-Net,
    they take 2 to 5 times as long for a single sample and, at 4 steps, 1.2 to 2.7 times in
    training (whole networks: ``benchmarks/bench_sampling_unet.py``). Stride and padding are
    integers; no dilation, no groups.
    """

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        steps = (input.shape[-1] + 2 * padding - kernel) // stride + 1
        # Where the product was the faster one, see above; elsewhere the routine is.
        few_rows = len(input) * steps <= 32
        if input.device.type != "cpu" or not (few_rows or (steps <= 4 and kernel > 1)):
            return super().forward(input)
        # (B, C, T, k) to (B, T, C * k): the order of the weights, (C', C, k)
        windows = F.pad(input, (padding, padding)).unfold(-1, kernel, stride)
        product = F.linear(windows.transpose(1, 2).flatten(2), self.weight.flatten(1), self.bias)
        return product.transpose(1, 2)


class Downsample1d(nn.Module):
    """Halves the sequence: (B, C, T) to (B, C, T/2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = ShortConv1d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample1d(nn.Module):
    """Doubles the sequence: (B, C, T) to (B, C, 2T)."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and len(x) == 1:
            return self._as_product(x)
        return self.conv(x)

    def _as_product(self, x: Tensor) -> Tensor:
        """The same as one matrix product: up to 11 times as fast for a single sample.

        Input step t contributes its four taps to output steps 2t-1 .. 2t+2.
        """
        taps = x.transpose(1, 2) @ self.conv.weight.flatten(1)
        taps = taps.unflatten(2, (-1, 4))  # (B, T, C, 4)
        from_previous = F.pad(taps[:, :-1, :, 3], (0, 0, 1, 0))
        from_next = F.pad(taps[:, 1:, :, 0], (0, 0, 0, 1))
        even = taps[..., 1] + from_previous
        odd = taps[..., 2] + from_next
        y = torch.stack((even, odd), dim=2).flatten(1, 2).transpose(1, 2)
        return y if self.conv.bias is None else y + self.conv.bias[:, None]


class Conv1dBlock(nn.Module):
    """Conv1d, GroupNorm, Mish: (B, inp_channels, T) to (B, out_channels, T) for odd kernels."""

    def __init__(self, inp_channels: int, out_channels: int, kernel_size: int, n_groups: int = 8):
        super().__init__()
        self.block = nn.Sequential(
            ShortConv1d(inp_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, out_channels),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)
