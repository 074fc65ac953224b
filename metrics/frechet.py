"""Frechet distance between two Gaussians fitted to features: FID when the features are Inception's."""

import torch
from torch import Tensor

from metrics.feature_stats import FeatureStats


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
    and not negative. F is the Cholesky factor where there is one (half the time at D = 2048), else, for a singular C_a,
    F = U diag(w)^(1/2) of its eigendecomposition.
    """
    factor, failed = torch.linalg.cholesky_ex(cov_a)
    if failed:
        values, vectors = torch.linalg.eigh(cov_a)
        factor = vectors * values.clamp_min(0).sqrt()  # round-off makes zeros slightly negative
    return float(torch.linalg.eigvalsh(factor.T @ cov_b @ factor).clamp_min(0).sqrt().sum())


def rank_note(a: FeatureStats, b: FeatureStats) -> str:
    """What to tell whoever reads the distance of fewer rows than features; '' where there are enough."""
    few, width = min(a.num, b.num), a.num_features or 0
    if few > width:
        return ""
    return f"only {few:,} images for {width:,} features: the covariance is singular and the distance biased upwards"
