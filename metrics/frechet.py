"""Frechet distance between two Gaussians fitted to features: FID when the features are Inception's."""

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from metrics.feature_stats import FeatureStats

COLUMNS = 256  # of a product computed at once


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """|mu_a - mu_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)). arXiv:1706.08500, equation 6.

    Args:
        a, b: statistics of equal width, at least 2 rows each. Fewer rows than features is allowed: the covariance is
            then singular, the distance still defined (and far larger than with rows enough).

    Returns:
        At least 0, in squared units of the features.
    """
    if a.num_features != b.num_features:
        raise ValueError(f"got statistics {a.num_features} and {b.num_features} features wide; expected one width")
    (mean_a, cov_a), (mean_b, cov_b) = a.mean_and_cov(), b.mean_and_cov()
    apart = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace())
    squared = apart - 2 * sqrt_trace(cov_a, cov_b)
    return max(squared, 0.0)  # equal sets come out at about -1e-14 as often as at 1e-14


def sqrt_trace(cov_a: Tensor, cov_b: Tensor) -> float:
    """Tr((C_a C_b)^(1/2)) of two covariances [D, D] float64.

    With any F such that C_a = F F^T, the product C_a C_b has the eigenvalues of the symmetric F^T C_b F, which are real
    and not negative.
    """
    return float(torch.linalg.eigvalsh(_between(_factor(cov_a), cov_b)).clamp_min(0).sqrt().sum())


def _factor(cov: Tensor) -> Tensor:
    """Lower triangular F with F F^T = cov: Cholesky's where there is one, else by way of the eigendecomposition."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(cov)
    if failed:
        values, vectors = torch.linalg.eigh(cov)
        factor = torch.linalg.qr((vectors * values.clamp_min(0).sqrt()).T).R.T  # zeros come out slightly negative
    return factor


def _between(factor: Tensor, cov: Tensor) -> Tensor:
    """F^T C F of a lower triangular F: its lower triangle, which is what eigvalsh and eigh look at, for a third."""
    product = torch.zeros_like(cov)
    for start in range(0, len(cov), COLUMNS):
        rest, some = slice(start, None), slice(start, start + COLUMNS)
        product[rest, some] = factor[rest, rest].T @ (cov[rest, rest] @ factor[rest, some])
    return product


def frechet_error(a: FeatureStats, groups: Sequence[FeatureStats]) -> float | None:
    """Standard error of the distance from `a` to all groups together, by the jackknife that leaves out a group.

    Efron and Stein, The jackknife estimate of variance, Annals of Statistics 9 (1981), of the distance's first-order
    expansion in the moments of b: 2 (mu_b - mu_a) . dmu + Tr((I - T) dC), with T = F (F^T C_b F)^(-1/2) F^T the optimal
    transport from b to a. So one eigendecomposition serves all groups. The reference is taken as it is.

    Args:
        a: the reference.
        groups: of equal size, in which the images of b were drawn alike.

    Returns:
        None where there is no telling: one group, or a singular covariance, at which the distance has no derivative.
    """
    b = reduce(add, groups)
    width = b.num_features or 0
    if len(groups) < 2 or min(a.num, b.num * (len(groups) - 1) // len(groups)) <= width:
        return None
    (mean_a, cov_a), (mean_b, cov_b) = a.mean_and_cov(), b.mean_and_cov()
    factor = _factor(cov_a)
    values, vectors = torch.linalg.eigh(_between(factor, cov_b))
    if values[0] <= values[-1] * width * torch.finfo(torch.float64).eps:
        return None
    root = factor @ (vectors * values.pow(-0.25))
    slope = torch.eye(width, dtype=torch.float64) - root @ root.T
    whole = float((slope * cov_b).sum()) * (b.num - 1)  # <I - T, scatter>, and so below
    changes = []
    for group in groups:
        left, (mean, cov) = b.num - group.num, group.mean_and_cov()
        mean_left = (b.num * mean_b - group.num * mean) / left
        apart = mean_left - mean
        scatter = whole - float((slope * cov).sum()) * (group.num - 1)
        scatter -= left * group.num / b.num * float(apart @ slope @ apart)
        changes.append(float(2 * (mean_b - mean_a) @ mean_left) + scatter / (left - 1))
    spread = torch.tensor(changes, dtype=torch.float64)
    return math.sqrt((len(groups) - 1) * float(spread.var(correction=0)))


def rank_note(a: FeatureStats, b: FeatureStats) -> str:
    """What to tell whoever reads the distance of fewer rows than features; '' where there are enough."""
    few, width = min(a.num, b.num), a.num_features or 0
    if few > width:
        return ""
    return f"only {few:,} images for {width:,} features: the covariance is singular and the distance biased upwards"
