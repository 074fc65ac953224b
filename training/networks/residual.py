"""Residual blocks of SAGAN, BigGAN and BigGAN-deep (arXiv 1809.11096, figures 15 and 16).

The generator's normalisation layers are made by `norm(channels)`; all else is spectrally normalised.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks.conditional_norm import ConditionalBatchNorm
from training.networks.spectral_norm import SNConv2d

Norm = Callable[[int], ConditionalBatchNorm]


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2 H, 2 W], nearest neighbour."""
    return F.interpolate(x, scale_factor=2)


def activate(x: Tensor, slope: float) -> Tensor:
    """ReLU, or LeakyReLU where there is a slope: the one that backward passes remember less for, if it will do."""
    return F.leaky_relu(x, slope) if slope else F.relu(x)


class Block(torch.nn.Module):
    """What all blocks share: an activation function that `set_slope` can change."""

    slope = 0.0

    def act(self, x: Tensor) -> Tensor:
        return activate(x, self.slope)


def set_slope(network: torch.nn.Module, slope: float) -> None:
    """Give all blocks of a network LeakyReLUs of this slope; 0: ReLUs, as they have from the start."""
    for module in network.modules():
        if isinstance(module, Block):
            module.slope = slope


class GBlock(Block):
    """norm, ReLU, 3x3, norm, ReLU, 3x3; the skip is a 1x1 convolution (BigGAN, figure 15b)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, up: bool, eps: float) -> None:
        super().__init__()
        self.up = up
        self.conv1 = SNConv2d(in_channels, out_channels, kernel_size=3, eps=eps)
        self.conv2 = SNConv2d(out_channels, out_channels, kernel_size=3, eps=eps)
        self.conv_sc = None
        if up or in_channels != out_channels:
            self.conv_sc = SNConv2d(in_channels, out_channels, kernel_size=1, eps=eps)
        self.bn1 = norm(in_channels)
        self.bn2 = norm(out_channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.act(self.bn1(x, y))  # [N, in_channels, R, R]
        h = self.conv1(upsample(h) if self.up else h)  # [N, out_channels, 2 R, 2 R] from here on
        h = self.conv2(self.act(self.bn2(h, y)))
        skip = x if self.conv_sc is None else self.conv_sc(x)  # before the upsampling: same values, a quarter the work
        return h + (upsample(skip) if self.up else skip)


class DeepGBlock(Block):
    """1x1 down to a quarter of the channels, two 3x3, 1x1 up; the skip drops channels (BigGAN, figure 16b)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, up: bool, eps: float) -> None:
        super().__init__()
        self.up, self.out_channels = up, out_channels
        hidden = max(in_channels // 4, 1)
        self.conv1 = SNConv2d(in_channels, hidden, kernel_size=1, eps=eps)
        self.conv2 = SNConv2d(hidden, hidden, kernel_size=3, eps=eps)
        self.conv3 = SNConv2d(hidden, hidden, kernel_size=3, eps=eps)
        self.conv4 = SNConv2d(hidden, out_channels, kernel_size=1, eps=eps)
        self.bn1 = norm(in_channels)
        self.bn2 = norm(hidden)
        self.bn3 = norm(hidden)
        self.bn4 = norm(hidden)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(self.act(self.bn1(x, y)))  # [N, hidden, R, R]
        h = self.act(self.bn2(h, y))
        h = self.conv2(upsample(h) if self.up else h)  # [N, hidden, 2 R, 2 R] from here on
        h = self.conv3(self.act(self.bn3(h, y)))
        h = self.conv4(self.act(self.bn4(h, y)))  # [N, out_channels, 2 R, 2 R]
        skip = x[:, : self.out_channels]
        return h + (upsample(skip) if self.up else skip)


class DBlock(Block):
    """ReLU, 3x3, ReLU, 3x3, average pool; the skip is a 1x1 convolution (BigGAN, figure 15c).

    The first block starts from the image, which no ReLU may cut.
    """

    def __init__(self, in_channels: int, out_channels: int, first: bool, down: bool, eps: float) -> None:
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = SNConv2d(in_channels, out_channels, kernel_size=3, eps=eps)
        self.conv2 = SNConv2d(out_channels, out_channels, kernel_size=3, eps=eps)
        self.conv_sc = None
        if down or in_channels != out_channels:
            self.conv_sc = SNConv2d(in_channels, out_channels, kernel_size=1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else self.act(x))  # [N, out_channels, R, R]
        h = self.conv2(self.act(h))
        skip = x
        if self.down:
            h, skip = F.avg_pool2d(h, 2), F.avg_pool2d(skip, 2)  # a 1x1 convolution gives the same before and after
        return h + (skip if self.conv_sc is None else self.conv_sc(skip))  # [N, out_channels, R / 2, R / 2]


class DeepDBlock(Block):
    """1x1 down, two 3x3, average pool, 1x1 up; the skip adds channels (BigGAN, figure 16c)."""

    def __init__(self, in_channels: int, out_channels: int, down: bool, eps: float) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(f"out_channels: {out_channels} is less than in_channels, {in_channels}; expected no less.")
        self.down = down
        hidden = max(out_channels // 4, 1)
        self.conv1 = SNConv2d(in_channels, hidden, kernel_size=1, eps=eps)
        self.conv2 = SNConv2d(hidden, hidden, kernel_size=3, eps=eps)
        self.conv3 = SNConv2d(hidden, hidden, kernel_size=3, eps=eps)
        self.conv4 = SNConv2d(hidden, out_channels, kernel_size=1, eps=eps)
        self.conv_sc = None
        if in_channels != out_channels:
            self.conv_sc = SNConv2d(in_channels, out_channels - in_channels, kernel_size=1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.act(x))  # [N, hidden, R, R]
        h = self.conv2(self.act(h))
        h = self.act(self.conv3(self.act(h)))
        skip = x
        if self.down:
            h, skip = F.avg_pool2d(h, 2), F.avg_pool2d(skip, 2)  # [N, ..., R / 2, R / 2]
        if self.conv_sc is not None:
            skip = torch.cat([skip, self.conv_sc(skip)], dim=1)  # [N, out_channels, R / 2, R / 2]
        return self.conv4(h) + skip
