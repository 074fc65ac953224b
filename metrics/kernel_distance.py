"""Kernel Inception Distance: an unbiased estimate of the squared maximum mean discrepancy. arXiv:1801.01401."""

import math

import numpy as np
import torch
from torch import Tensor

from metrics.feature_stats import check_finite

SUBSETS, SUBSET_ROWS = 100, 1000  # of the paper's code and of StyleGAN2-ADA


def kernel_distance(
    real: Tensor, fake: Tensor, num_subsets: int = SUBSETS, subset_rows: int = SUBSET_ROWS, seed: int = 0
) -> tuple[float, float | None]:
    """Mean over random subsets of the unbiased MMD^2 with the kernel k(x, y) = (x.y / D + 1)^3.

    Args:
        real, fake: features [N, D] and [M, D], at least 2 rows each.
        num_subsets: how many pairs; of sets of one size, no larger than `subset_rows`, there is one, the whole.
        subset_rows: rows of a subset; at most as many as the smaller set has.
        seed: of the subsets.

    Returns:
        the distance (it may be slightly negative: it is unbiased), and the standard error over the subsets, which
        share rows, so that it is a lower bound; None for one subset.
    """
    check_finite(real)
    check_finite(fake)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"got real features {real.shape[1]} wide and fake {fake.shape[1]}; expected one width")
    rows = min(subset_rows, len(real), len(fake))
    if rows < 2:
        raise ValueError(f"got {len(real)} real and {len(fake)} fake features; expected at least 2 of each")
    if rows == len(real) == len(fake):
        num_subsets = 1  # each would be the whole
    distances = []
    for number in range(num_subsets):
        draw = np.random.Generator(np.random.Philox(key=[seed, number]))  # a subset does not depend on the others
        chosen = [torch.from_numpy(draw.choice(len(x), rows, replace=False)) for x in (real, fake)]
        x, y = (x[ids.to(x.device)].double() for x, ids in zip((real, fake), chosen, strict=True))
        distances.append(_squared_discrepancy(x, y))
    error = float(np.std(distances, ddof=1)) / math.sqrt(num_subsets) if num_subsets > 1 else None
    return float(np.mean(distances)), error


def _squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 of two sets of n rows. arXiv:1801.01401, equation 4: pairs of a row with itself are left out."""
    n = len(x)
    within = sum(float(kernel.sum() - kernel.trace()) for kernel in (_kernel(x, x), _kernel(y, y)))
    return within / (n * (n - 1)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return ((x @ y.T) / x.shape[1] + 1) ** 3
