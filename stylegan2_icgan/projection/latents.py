"""What is searched: the styles w themselves, or the z and the instance feature h that they are made of."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stylegan2_icgan.features import normalise
from training.condition import Condition
from training.randomness import seed_everything

NUM_DRAWS = 10_000  # of z (StyleGAN2, appendix D)
BATCH = 1000


@dataclass(frozen=True)
class StyleStatistics:
    """Where styles lie, for each of N conditions.

    Args:
        mean: float32 [N, w_dim], over z.
        deviation: float32 [N], square root of the mean squared distance from it.
        central_z: float32 [N, z_dim], of all draws the one whose style is nearest to the mean.
    """

    mean: Tensor
    deviation: Tensor
    central_z: Tensor


@torch.no_grad()
def style_statistics(mapping: torch.nn.Module, condition: Condition, seed: int) -> StyleStatistics:
    """From `NUM_DRAWS` draws of z, the same ones for each condition."""
    seed_everything(seed)
    z = torch.randn(NUM_DRAWS, mapping.z_dim).to(condition.c.device)
    found = []
    for row in range(len(condition)):
        parts = []
        for some in z.split(BATCH):
            same = condition[[row] * len(some)]
            parts.append(mapping(some, same.c, same.h)[:, 0])
        w = torch.cat(parts)  # [NUM_DRAWS, w_dim]
        mean = w.mean(dim=0)
        squared = (w - mean).square().sum(dim=1)
        found.append((mean, squared.mean().sqrt(), z[squared.argmin()]))
    mean, deviation, central = (torch.stack(values) for values in zip(*found, strict=True))
    return StyleStatistics(mean, deviation, central)


class Latents(Protocol):
    """What the optimiser moves, and the styles that follow from it."""

    parameters: list[Tensor]

    def styles(self) -> Tensor:
        """[N, num_ws, w_dim]."""
        ...


class FreeStyles:
    """w itself, from the mean on.

    Args:
        each: a style for every layer (W+), in place of one for all.
    """

    def __init__(self, start: Tensor, num_ws: int, each: bool) -> None:
        self.num_ws = num_ws
        self.w = start.unsqueeze(1).repeat(1, num_ws if each else 1, 1).requires_grad_()  # [N, 1 or num_ws, w_dim]
        self.parameters = [self.w]

    def styles(self) -> Tensor:
        return self.w.expand(-1, self.num_ws, -1)


class MappedStyles:
    """w = f(z, c, h): z and h are moved, both on the scale of N(0, 1), where one learning rate fits.

    The mapping network brings z to that scale by itself; h keeps its unit length.
    """

    def __init__(self, mapping: torch.nn.Module, z: Tensor, condition: Condition) -> None:
        self.mapping, self.c = mapping, condition.c
        self.free_z = z.clone().requires_grad_()
        self.free_h = (condition.h * math.sqrt(condition.h.shape[1])).requires_grad_()
        self.parameters = [self.free_z, self.free_h]

    @property
    def z(self) -> Tensor:
        return self.free_z

    @property
    def h(self) -> Tensor:
        return normalise(self.free_h)

    def styles(self) -> Tensor:
        return self.mapping(self.z, self.c, self.h)
