"""Corruptions: additive noise, and a square that is cut out."""

import torch
from torch import Tensor

from training.augment.draws import chosen, column

# arXiv 2006.06676, appendix B.
NOISE_STD = 0.1  # sigma ~ Halfnormal(0.1^2), in images of [-1, 1]
CUTOUT_SIDE = 0.5  # of the image's


def draw_noise(count: int, p: Tensor) -> Tensor:
    """Standard deviations of the noise, float32 [N]; 0 with probability 1 - p."""
    return torch.where(chosen(p, count), torch.randn(count, device=p.device).abs() * NOISE_STD, 0)


def add_noise(images: Tensor, sigma: Tensor) -> Tensor:
    """Add N(0, sigma^2) to every pixel and channel of [N, C, H, W]; sigma 0 gives the image as it is, bit for bit."""
    noise = torch.randn_like(images) * column(sigma).to(images.dtype)
    return torch.where(column(sigma) == 0, images, images + noise)


def draw_cutout(count: int, p: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the squares, float32 [N, 2], shares (x, y) of the side; and whether to cut at all, bool [N]."""
    return torch.rand(count, 2, device=p.device), chosen(p, count)


def cut_out(images: Tensor, centres: Tensor, cut: Tensor) -> Tensor:
    """Set a square to 0, mid-grey, in those images of [N, C, S, S] where `cut` says so.

    From round((centre - 1/4) S) up to, not including, round((centre + 1/4) S) on each axis: beyond the border nothing.
    """
    side = images.shape[2]
    low, high = ((centres + offset) * side for offset in (-CUTOUT_SIDE / 2, CUTOUT_SIDE / 2))
    number = torch.arange(side, device=images.device)
    inside = (number >= low.round()[..., None]) & (number < high.round()[..., None])  # [N, 2, S]
    hole = inside[:, 0, None, None, :] & inside[:, 1, None, :, None] & column(cut)
    return torch.where(hole, 0, images)
