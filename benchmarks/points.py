"""Networks for points of the plane, which are images of one pixel with a channel for each coordinate.

Liu et al., arXiv 2006.10728, section 4.1 and supplement: a generator of linear layers with batch normalisation, a
discriminator of Maxout layers (Goodfellow et al., arXiv 1302.4389).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks import unconditional
from training.networks.conditional_norm import BatchNorm

PIECES = 5  # linear functions of a Maxout unit


class Generator(unconditional.Generator):
    """Four hidden layers, z -> points."""

    def __init__(self, z_dim: int, width: int) -> None:
        super().__init__(z_dim, img_resolution=1, img_channels=2)
        widths = [z_dim, width, width, width, width]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = torch.nn.ModuleList(BatchNorm(width) for _ in self.layers)
        self.out = torch.nn.Linear(width, 2)

    def images(self, z: Tensor) -> Tensor:
        x = z
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)[:, :, None, None])).flatten(1)  # [N, width]
        points: Tensor = self.out(x)
        return points[:, :, None, None]


class Maxout(torch.nn.Module):
    """The largest of several linear functions, for each unit (arXiv 1302.4389, section 2)."""

    def __init__(self, in_features: int, units: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(in_features, units * PIECES)

    def forward(self, x: Tensor) -> Tensor:
        largest: Tensor = self.linear(x).unflatten(1, (PIECES, -1)).amax(dim=1)
        return largest


def trunk(units: int) -> torch.nn.Module:
    """Of the discriminator: points -> [N, units]."""
    return torch.nn.Sequential(torch.nn.Flatten(), Maxout(2, units), Maxout(units, units), Maxout(units, units))
