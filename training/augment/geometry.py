"""General geometric transformations: scaling, rotation, stretching and translation in one inverse warp."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from torch_utils.ops.grid_sample import grid_sample
from torch_utils.ops.upfirdn2d import upfirdn2d
from training.augment.borders import reflect_pad
from training.augment.draws import chosen, column, lognormal, uniform
from training.augment.wavelets import SYM6, centre, unit_sum

# Distributions of arXiv 2006.06676, appendix B.
SCALE_OCTAVES = 0.2  # s ~ Lognormal(0, (0.2 ln 2)^2), for isotropic and anisotropic scaling
SHIFT_STD = 0.125  # of the side; t ~ N(0, 0.125^2)

SMALL_SIDE = 32  # pixels up to which a CPU multiplies by matrices sooner than it filters; 16 px in a third of the time
REACH = len(SYM6) // 2  # pixels that the twice as dense filter looks at, per phase
CENTRE = centre(SYM6)


@dataclass(frozen=True)
class Geometry:
    """In the order of application; one row an image, all float32."""

    scale: Tensor  # [N]: both axes
    before: Tensor  # [N]: rotation in radians, from x to y
    stretch: Tensor  # [N]: x by this, y by its inverse
    after: Tensor  # [N]: rotation again
    shift: Tensor  # [N, 2]: shares of the side to the right and down


def draw_geometry(count: int, p: Tensor) -> Geometry:
    """Each with probability p; of the two rotations each with 1 - sqrt(1 - p), so that p of the images are rotated."""
    device = p.device
    p_rotation = 1 - (1 - p).clamp(min=0).sqrt()
    return Geometry(
        scale=torch.where(chosen(p, count), lognormal(SCALE_OCTAVES, count, device=device), 1),
        before=torch.where(chosen(p_rotation, count), uniform(-math.pi, math.pi, count, device=device), 0),
        stretch=torch.where(chosen(p, count), lognormal(SCALE_OCTAVES, count, device=device), 1),
        after=torch.where(chosen(p_rotation, count), uniform(-math.pi, math.pi, count, device=device), 0),
        shift=torch.where(chosen(p, count, 1), torch.randn(count, 2, device=device) * SHIFT_STD, 0),
    )


def inverse_map(geometry: Geometry, pixels: Tensor, side: int) -> Tensor:
    """Where each point of the result comes from.

    The forward map first moves by `pixels`, then does what `geometry` says: x' = R2 D R1 s (x + pixels) + t about the
    image's centre. Its inverse is written out here, because as products of matrices it would be a dozen launches, and
    in TF32 (if that is switched on) a pixel off.

    Args:
        geometry: N rows.
        pixels: [N, 2], translation by whole pixels, from blitting.
        side: of the images, pixels.

    Returns:
        float32 [N, 2, 3]: (x, y, 1) of the result -> (x, y) of the image, both in pixels from the image's centre.
    """
    cos1, sin1, cos2, sin2 = geometry.before.cos(), geometry.before.sin(), geometry.after.cos(), geometry.after.sin()
    wide, narrow = 1 / (geometry.stretch * geometry.scale), geometry.stretch / geometry.scale
    xx = cos1 * cos2 * wide - sin1 * sin2 * narrow
    xy = cos1 * sin2 * wide + sin1 * cos2 * narrow
    yx = -sin1 * cos2 * wide - cos1 * sin2 * narrow
    yy = -sin1 * sin2 * wide + cos1 * cos2 * narrow
    shift_x, shift_y = (geometry.shift * side).unbind(1)
    x = -xx * shift_x - xy * shift_y - pixels[:, 0]
    y = -yx * shift_x - yy * shift_y - pixels[:, 1]
    return torch.stack([xx, xy, x, yx, yy, y], dim=1).view(-1, 2, 3)


def warp(images: Tensor, inverse: Tensor, lowpass: Tensor) -> Tensor:
    """Resample images, continued by reflection without end, through an affine map (arXiv 2006.06676, appendix B).

    Twice as dense by the orthogonal filter, looked up bilinearly twice as dense, then halved by the mirrored filter:
    the identity map returns the image, up to rounding, and a bilinear lookup blurs little of what is kept.

    The paper pads by as much as the transformations at hand need. Here it is always one whole period of the reflection,
    and the points are wrapped into it. That is exact however far a point lies and needs no number from the device, for
    which the host would have to wait in every step. It filters 16 times the image's pixels; sized padding, measured at
    64 px and batches of 32, 10 times at p = 0.05, 16 at 0.4 and 22 at 0.8.

    Args:
        images: [N, C, S, S], float32 or float64.
        inverse: [N, 2, 3] from `inverse_map`.
        lowpass: sym6 as `unit_sum` gives it.

    Returns:
        [N, C, S, S]; images whose map is the identity come back as they are, bit for bit.
    """
    side, inverse = images.shape[2], inverse.to(images.dtype)
    same = (inverse == torch.eye(2, 3, dtype=inverse.dtype, device=inverse.device)).flatten(1).all(1)

    # One period of the reflection, twice as dense. Sample m lies at (m - REACH + CENTRE) / 2 pixels: a filter of six
    # vanishing moments keeps straight lines straight, shifted by its centre. The last sample repeats the first.
    period = 2 * (side - 1)
    is_small = images.device.type == "cpu" and side <= SMALL_SIDE
    if is_small:
        up, down = filter_matrices(side, images.dtype)
        dense = up @ images @ up.t()
    else:
        dense = densified(densified(images, lowpass, 2), lowpass, 3)

    # Look up every point that the halving filter touches.
    number = torch.arange(2 * side + 2 * REACH - 2, dtype=images.dtype, device=images.device) - (REACH - 1)
    position = (number - REACH + CENTRE) / 2 - (side - 1) / 2
    x, y = position.view(1, 1, -1), position.view(1, -1, 1)
    xx, xy, x0, yx, yy, y0 = (entry.view(-1, 1, 1) for entry in inverse.flatten(1).unbind(1))
    points = torch.stack([xx * x + xy * y + x0, yx * x + yy * y + y0], dim=3)
    samples = (2 * (points + (side - 1) / 2) + REACH - CENTRE).remainder(2 * period)
    values = grid_sample(dense, samples / period - 1, padding_mode="border", align_corners=True)

    result = down @ values @ down.t() if is_small else upfirdn2d(values, lowpass, down=2)
    return torch.where(column(same), images, result)


def densified(images: Tensor, lowpass: Tensor, dim: int) -> Tensor:
    """One period of the reflection along an axis, 2 or 3, with twice as many samples."""
    side = images.shape[dim]
    before, after = REACH // 2, 2 * (side - 1) + REACH // 2 - side
    padded, taps, up = reflect_pad(images, dim, before, after), lowpass[:, None], [1, 2]
    return upfirdn2d(padded, taps if dim == 2 else taps.t(), up=up if dim == 2 else up[::-1], flip_filter=True, gain=2)


@lru_cache
def filter_matrices(side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What `warp` does along an axis before and after the lookup, as matrices: how the filters answer each pixel."""
    lowpass = unit_sum(SYM6).to(dtype)
    up = densified(torch.eye(side, dtype=dtype)[None, None], lowpass, 2)
    points = torch.eye(2 * side + 2 * REACH - 2, dtype=dtype)[None, None]
    down = upfirdn2d(points, lowpass[:, None], down=[1, 2])
    return up[0, 0], down[0, 0]
