"""Orthogonal wavelet filters and the octave bands made of them (Daubechies, Ten Lectures on Wavelets, 1992)."""

import math

import numpy as np
import torch

# Taps of the low-pass filter H(z), scaled to the sum sqrt(2): a filter and its shifts by 2, 4, ... are orthonormal.
# sym2: 4 taps, the shortest with two vanishing moments; the closed form of Daubechies' section 6.1.
_ROOT3 = math.sqrt(3)
SYM2 = tuple(tap / (4 * math.sqrt(2)) for tap in (1 + _ROOT3, 3 + _ROOT3, 3 - _ROOT3, 1 - _ROOT3))

# sym6: 12 taps, the nearest to symmetric with six vanishing moments. tests/test_augment.py derives it anew.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)


def unit_sum(taps: tuple[float, ...]) -> torch.Tensor:
    """Taps scaled to the sum 1, so that a constant image keeps its value: float32 [taps]."""
    return torch.tensor(np.array(taps) / math.fsum(taps), dtype=torch.float32)


def centre(taps: tuple[float, ...]) -> float:
    """Where a slowly varying signal comes to lie under the filter: the mean of the tap's number, weighted by the tap.

    sym6 is not quite symmetric: 5.1 instead of 5.5.
    """
    return math.fsum(number * tap for number, tap in enumerate(taps)) / math.fsum(taps)


def octave_bands() -> torch.Tensor:
    """Zero-phase filters for the bands [0, pi/8], [pi/8, pi/4], [pi/4, pi/2] and [pi/2, pi].

    As in arXiv 2006.06676, appendix B. With L(z) = H(z) H(1/z) / 2 and U(z) = H(-z) H(-1/z) / 2 of sym2, the bands from
    the top down are U(z), L(z) U(z^2), L(z) L(z^2) U(z^4) and L(z) L(z^2) L(z^4). Orthogonality means L + U = 1, so
    that they sum to 1: with equal gains nothing is filtered.

    Returns:
        float32 [4, 43], lowest band first, symmetric about tap 21.
    """
    taps = np.array(SYM2)
    mirrored = taps * (-1.0) ** np.arange(len(taps))  # H(-z)
    low, high = (np.convolve(h, h[::-1]) / 2 for h in (taps, mirrored))

    def spread(kernel: np.ndarray, factor: int) -> np.ndarray:
        """K(z) -> K(z^factor)"""
        result = np.zeros((len(kernel) - 1) * factor + 1)
        result[::factor] = kernel
        return result

    below, bands = np.ones(1), []
    for factor in (1, 2, 4):
        bands.append(np.convolve(below, spread(high, factor)))
        below = np.convolve(below, spread(low, factor))
    bands.append(below)
    width = len(below)
    rows = [np.pad(band, (width - len(band)) // 2) for band in reversed(bands)]
    return torch.tensor(np.stack(rows), dtype=torch.float32)
