"""Mixtures of Gaussians in the plane, and what of them a generator has found.

Srivastava et al., VEEGAN, arXiv 1705.07761, section 5.1; as measured by Liu et al., arXiv 2006.10728, section 4.1.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Equal shares of isotropic Gaussians.

    Args:
        centres: float64 [K, 2].
        std: of each coordinate.
    """

    centres: np.ndarray
    std: float

    def __len__(self) -> int:
        return len(self.centres)

    def draw(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Points, float32 [count, 2], and the mode of each, int64 [count]."""
        rng = np.random.default_rng(seed)
        modes = rng.integers(0, len(self), count)
        points = self.centres[modes] + self.std * rng.standard_normal((count, 2))
        return points.astype(np.float32), modes

    def measure(self, points: np.ndarray) -> dict[str, float]:
        """What a generator has found of the mixture.

        Args:
            points: float [N, 2].

        Returns:
            modes: how many modes have a sample of high quality, one within 3 standard deviations in each coordinate.
            quality: share of such samples.
            reverse_kl: sum of p ln(K p) over the modes, p their shares in all samples, each counted for the nearest
                mode; natural logarithm. Samples of the mixture itself have (K - 1) / 2N on average.
        """
        off = np.abs(points[:, None] - self.centres)  # [N, K, 2]
        nearest = np.square(off).sum(axis=2).argmin(axis=1)
        good = (off[np.arange(len(points)), nearest] < 3 * self.std).all(axis=1)
        counts = np.bincount(nearest, minlength=len(self))
        return {
            "modes": len(np.unique(nearest[good])),
            "quality": float(good.mean()),
            "reverse_kl": reverse_kl(counts),
        }


def reverse_kl(counts: np.ndarray, base: float = math.e) -> float:
    """KL divergence of the shares of `counts` [K] from equal shares: sum of p log(K p), log to this base."""
    p = counts[counts > 0] / counts.sum()
    return float((p * np.log(len(counts) * p)).sum() / math.log(base))


def _ring() -> Mixture:
    angles = 2 * np.pi * np.arange(8) / 8
    return Mixture(2 * np.stack([np.cos(angles), np.sin(angles)], axis=1), std=0.01)


def _grid() -> Mixture:
    steps = np.arange(-4.0, 5.0, 2.0)
    return Mixture(np.stack(np.meshgrid(steps, steps), axis=2).reshape(-1, 2), std=0.05)


MIXTURES = {"ring": _ring(), "grid": _grid()}
