"""Image-space filtering: four octaves, amplified or damped."""

import torch
from torch import Tensor
from torch.nn import functional

from training.augment.borders import reflect_pad
from training.augment.draws import chosen, column, lognormal

# arXiv 2006.06676, appendix B.
GAIN_OCTAVES = 1.0  # t ~ Lognormal(0, (1 ln 2)^2)
POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # expected share of each band, lowest first, in images of spectrum 1 / f


def draw_gains(count: int, p: Tensor) -> Tensor:
    """One gain a band, float32 [N, 4]: each band amplified with probability p.

    After each amplification all four gains are divided so that the expected power, sum over bands of
    POWER * gain^2, is 1 again.
    """
    factors = torch.where(chosen(p, count, 4), lognormal(GAIN_OCTAVES, count, 4, device=p.device), 1)
    return balance(factors)


def balance(factors: Tensor) -> Tensor:
    """Factors [N, 4] of one amplification a band -> their joint gains [N, 4], power kept after each."""
    excess = torch.stack([power * (factors[:, band].square() - 1) for band, power in enumerate(POWER)], dim=1)
    return factors / (1 + excess).sqrt().prod(1, keepdim=True)


def amplify(images: Tensor, gains: Tensor, bands: Tensor) -> Tensor:
    """Filter along x and y in turn by the gains' combination of the bands; reflected at the borders.

    Args:
        images: [N, C, H, W], float32 or float64.
        gains: [N, 4].
        bands: [4, taps] from `octave_bands`.

    Returns:
        [N, C, H, W]; images with all gains 1 come back as they are, bit for bit.
    """
    count, channels, height, width = images.shape
    same = (gains == 1).all(1)
    bands, gains = bands.to(images.dtype), gains.to(images.dtype)
    taps = (gains[:, :, None] * bands).sum(1)
    weight = taps.repeat_interleave(channels, 0)[:, None]  # [N * C, 1, taps]

    # Every image has a filter of its own: all channels of all images become the channels of one.
    reach, groups = bands.shape[1] // 2, count * channels
    x = reflect_pad(images, 2, reach, reach).reshape(1, groups, height + 2 * reach, width)
    x = functional.conv2d(x, weight[..., None], groups=groups).reshape(images.shape)
    x = reflect_pad(x, 3, reach, reach).reshape(1, groups, height, width + 2 * reach)
    x = functional.conv2d(x, weight[:, :, None], groups=groups).reshape(images.shape)
    return torch.where(column(same), images, x)
