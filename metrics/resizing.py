"""Bringing images to the size a detector sees: the step in which published FIDs differ most. arXiv:2104.11222."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# clean: antialiased bicubic in floating point, clipped to 0..255 and not rounded, as clean-fid recommends.
# tf: bilinear without antialiasing on TensorFlow 1's grid, as the numbers of StyleGAN, BigGAN and pytorch-fid's world.
FILTERS = ("clean", "tf")


def resized(images: Tensor, side: int, how: str) -> Tensor:
    """uint8 or float [N, C, H, W], 0..255 -> float32 [N, C, side, side], 0..255, on the device of `images`."""
    x = images.float()
    if x.shape[2:] == (side, side):
        return x
    if how == "clean":
        return F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    if how != "tf":
        raise ValueError(f"got filter {how!r}; expected one of {', '.join(FILTERS)}")
    return _lerp(_lerp(x, 2, side), 3, side)


def _lerp(x: Tensor, axis: int, side: int) -> Tensor:
    """Linear along one axis; output pixel i samples the input at i * size / side, as TensorFlow 1 does."""
    size = x.shape[axis]
    place = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
    low = place.floor().long().clamp_max(size - 1)
    high = (low + 1).clamp_max(size - 1)
    weight = (place - low).view([-1 if a == axis else 1 for a in range(4)])
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)


def seen_at(side: int, how: str) -> dict[str, Any]:
    """For records: what images went through before a network saw them."""
    return {"filter": how, "side": side, "rounded_after_resize": False, "precision": "float32"}


def with_colour(images: Tensor) -> Tensor:
    """[N, 1 or 3, H, W] -> [N, 3, H, W]; grey is repeated."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
