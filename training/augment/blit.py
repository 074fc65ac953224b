"""Pixel blitting: flips, quarter turns and whole-pixel translation, which copy pixels and never blend them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.augment.draws import chosen, column, uniform

SHIFT = 0.125  # of the side; arXiv 2006.06676, appendix B: t ~ U(-0.125, 0.125)


@dataclass(frozen=True)
class Blit:
    """In the order of application; one row an image."""

    mirror: Tensor  # bool [N]: flip left-right
    turns: Tensor  # int64 [N] in 0..3: quarter turns against the clock, as the image is displayed
    shift: Tensor  # int64 [N, 2]: pixels to the right and down


def draw_blit(count: int, side: int, p: Tensor) -> Blit:
    """Each with probability p; half of the flips and a quarter of the turns change nothing (arXiv 2006.06676, B).

    Args:
        count: N.
        side: of the images, pixels.
        p: [] in [0, 1].
    """
    device = p.device
    mirror = chosen(p, count) & (torch.randint(2, (count,), device=device) == 1)
    turns = torch.where(chosen(p, count), torch.randint(4, (count,), device=device), 0)
    pixels = (uniform(-SHIFT, SHIFT, count, 2, device=device) * side).round().long()
    return Blit(mirror, turns, torch.where(chosen(p, count, 1), pixels, 0))


def turn(images: Tensor, blit: Blit) -> Tensor:
    """Flip and turn square images [N, C, S, S] of any dtype, exactly. The shift is left to `move` or to the warp."""
    turns = column(blit.turns)
    images = torch.where(column(blit.mirror), images.flip(3), images)
    images = torch.where(turns % 2 == 1, images.transpose(2, 3), images)
    images = torch.where((turns == 1) | (turns == 2), images.flip(2), images)
    return torch.where(turns >= 2, images.flip(3), images)
