"""DCGAN: strided convolutions and batch normalisation (Radford et al., arXiv 1511.06434), as WGAN has them.

Arjovsky et al., arXiv 1701.07875, section 4.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks import unconditional
from training.networks.conditional_norm import BatchNorm

FIRST = 4  # resolution the generator starts at and the discriminator ends with
RESOLUTIONS = (8, 16, 32, 64, 128)  # 64 is the published one; at 256 the widest layer would have 2048 channels


def widths_at(img_resolution: int, ch: int) -> list[int]:
    """Channels from the image on: ch, then twice as many with each halving of the resolution down to 4.

    Raises:
        ValueError: no such resolution, or no channels.
    """
    if img_resolution not in RESOLUTIONS:
        there = ", ".join(map(str, RESOLUTIONS))
        raise ValueError(f"img_resolution: {img_resolution} has no layers; expected one of {there}.")
    if ch < 1:
        raise ValueError(f"ch: {ch} leaves no channels; expected 1 or more.")
    return [ch << stage for stage in range((img_resolution // FIRST).bit_length() - 1)]


class Generator(unconditional.Generator):
    """Transposed convolutions, batch normalisation, ReLU; images in [-1, 1]."""

    def __init__(
        self,
        z_dim: int,
        img_resolution: int,  # of RESOLUTIONS
        img_channels: int,
        ch: int = 64,  # channels of the layer before the image
    ) -> None:
        super().__init__(z_dim, img_resolution, img_channels)
        widths = [*reversed(widths_at(img_resolution, ch)), img_channels]
        self.input_conv = torch.nn.ConvTranspose2d(z_dim, widths[0], FIRST, bias=False)
        self.convs = torch.nn.ModuleList(
            torch.nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False)
            for wide, narrow in itertools.pairwise(widths)
        )
        self.norms = torch.nn.ModuleList(BatchNorm(width) for width in widths[:-1])
        initialise(self)

    def images(self, z: Tensor) -> Tensor:
        x = self.input_conv(z[:, :, None, None])  # [N, channels, 4, 4]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(F.relu(norm(x)))  # [N, channels / 2, 2 R, 2 R], at last the image
        return torch.tanh(x)


class Trunk(torch.nn.Module):
    """Strided convolutions, batch normalisation, LeakyReLU: images -> features at 4x4."""

    def __init__(
        self,
        img_resolution: int,  # of RESOLUTIONS
        img_channels: int,
        ch: int = 64,  # channels of the layer after the image
        batch_norm: bool = True,  # False where the loss looks at each image alone (arXiv 1704.00028, section 4)
    ) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        widths = [img_channels, *widths_at(img_resolution, ch)]
        self.channels = widths[-1]
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=False)
            for narrow, wide in itertools.pairwise(widths)
        )
        self.norms = torch.nn.ModuleList(
            BatchNorm(width) if batch_norm and stage > 0 else torch.nn.Identity()
            for stage, width in enumerate(widths[1:])
        )

    def forward(self, img: Tensor) -> Tensor:
        """[N, channels, 4, 4]"""
        x = img
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.2)  # [N, 2 channels, R / 2, R / 2]
        return x


class Discriminator(unconditional.Discriminator):
    """The trunk, and a convolution to the logit; its arguments are the trunk's."""

    def __init__(self, img_resolution: int, img_channels: int, ch: int = 64, batch_norm: bool = True) -> None:
        super().__init__(img_resolution, img_channels)
        self.trunk = Trunk(img_resolution, img_channels, ch, batch_norm)
        self.output_conv = torch.nn.Conv2d(self.trunk.channels, 1, FIRST, bias=False)
        initialise(self)

    def logits(self, img: Tensor) -> Tensor:
        logits: Tensor = self.output_conv(self.trunk(img)).flatten(1)  # [N, 1]
        return logits


def initialise(network: torch.nn.Module) -> None:
    """Weights ~ N(0, 0.02), gains ~ N(1, 0.02) (arXiv 1511.06434, section 4)."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, BatchNorm):
            torch.nn.init.normal_(module.gain, mean=1.0, std=0.02)
