"""Colour transformations: five of them, in one affine map of (r, g, b) per image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.augment.draws import chosen, column, lognormal, uniform

# Distributions of arXiv 2006.06676, appendix B; images lie in [-1, 1].
BRIGHTNESS_STD = 0.2  # b ~ N(0, 0.2^2)
CONTRAST_OCTAVES = 0.5  # c ~ Lognormal(0, (0.5 ln 2)^2)
SATURATION_OCTAVES = 1.0  # s ~ Lognormal(0, (1 ln 2)^2)


@dataclass(frozen=True)
class Color:
    """In the order of application; one row an image, all [N] and float32 but for the flip."""

    brightness: Tensor  # added to r, g and b
    contrast: Tensor  # factor of r, g and b
    luma_flip: Tensor  # bool: mirror at the plane of zero luma
    hue: Tensor  # radians, about the luma axis
    saturation: Tensor  # factor of the distance from the luma axis


def draw_color(count: int, p: Tensor) -> Color:
    """Each with probability p; half of the luma flips change nothing."""
    device = p.device
    return Color(
        brightness=torch.where(chosen(p, count), torch.randn(count, device=device) * BRIGHTNESS_STD, 0),
        contrast=torch.where(chosen(p, count), lognormal(CONTRAST_OCTAVES, count, device=device), 1),
        luma_flip=chosen(p, count) & (torch.randint(2, (count,), device=device) == 1),
        hue=torch.where(chosen(p, count), uniform(-math.pi, math.pi, count, device=device), 0),
        saturation=torch.where(chosen(p, count), lognormal(SATURATION_OCTAVES, count, device=device), 1),
    )


def color_map(color: Color) -> Tensor:
    """All five as one homogeneous matrix, (r, g, b, 1) -> (r, g, b).

    With v = (1, 1, 1) / sqrt(3) the luma axis, P = v v^T, Q = I - P and K the cross product with v, every factor is a
    combination of P, Q and K: a flip is -P + Q, a turn P + cos Q + sin K, saturation P + s Q, and brightness lies
    along P. So does their product, which is written out here.

    Returns:
        float32 [N, 3, 4]; rows without a transformation are exactly the identity.
    """
    luma = color.contrast * (1 - 2 * color.luma_flip.to(color.contrast.dtype))
    chroma = color.contrast * color.saturation
    even, odd = chroma * color.hue.cos(), chroma * color.hue.sin() / math.sqrt(3)
    # An entry on the diagonal is (luma + 2 even) / 3; as a sum of differences it is exact where luma = even.
    diagonal, off = even + (luma - even) / 3, (luma - even) / 3
    up, down, shift = off - odd, off + odd, luma * color.brightness
    rows = [diagonal, up, down, shift, down, diagonal, up, shift, up, down, diagonal, shift]
    return torch.stack(rows, dim=1).view(-1, 3, 4)


def recolor(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply `color_map`.

    Args:
        images: [N, 3, H, W], or [N, 1, H, W]: grey, r = g = b, which stays so. float32 or float64.
        matrix: [N, 3, 4].

    Returns:
        the images' shape; images whose matrix is the identity come back as they are, bit for bit.
    """
    matrix = matrix.to(images.dtype)
    same = (matrix == torch.eye(3, 4, dtype=matrix.dtype, device=matrix.device)).flatten(1).all(1)
    if images.shape[1] == 1:
        result = images * column(matrix[:, 0, :3].sum(1)) + column(matrix[:, 0, 3])
    else:
        # Written out rather than as a matrix product, which TF32 would round to ten bits.
        result = matrix[:, :, 3, None, None]
        for channel in range(3):
            result = result + matrix[:, :, channel, None, None] * images[:, channel : channel + 1]
    return torch.where(column(same), images, result)
