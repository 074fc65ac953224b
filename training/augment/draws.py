"""What drawing parameters has in common: whether a transformation is applied at all, and by how much.

Everything comes from torch's global generator of the device, in float32, and takes the same draws whatever p is.
"""

import math

import torch
from torch import Tensor


def chosen(p: Tensor, *shape: int) -> Tensor:
    """True with probability p each: bool of the given shape, on p's device."""
    return torch.rand(shape, device=p.device) < p


def uniform(low: float, high: float, *shape: int, device: torch.device) -> Tensor:
    """float32 in [low, high)."""
    return torch.rand(shape, device=device) * (high - low) + low


def lognormal(octaves: float, *shape: int, device: torch.device) -> Tensor:
    """Lognormal(0, (octaves * ln 2)^2): 2 to the power of N(0, octaves^2), a factor; float32."""
    return (torch.randn(shape, device=device) * (octaves * math.log(2))).exp()


def column(values: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1], one value an image."""
    return values.view(-1, 1, 1, 1)
