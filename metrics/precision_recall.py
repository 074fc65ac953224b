"""Precision, recall, density and coverage: how k-nearest-neighbour balls of one set of features hold the other set.

Each feature vector is the centre of a ball that reaches to its k-th nearest neighbour among the OTHER vectors of its
set: a vector is left out of its own neighbours by its place, not by its distance, so duplicates count as neighbours.

Distances are float64. Whether a point lies exactly on a ball's surface decides ties (a generated copy of a training
image does), and round-off must not: distances that agree within `ROUNDING` of the vectors' squared lengths are equal.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from metrics.feature_stats import finite_rows

CHUNK_ROWS = 2048  # the largest matrix of distances is [CHUNK_ROWS, CHUNK_ROWS], 32 MiB
ROUNDING = 1e-12  # of |a|^2 + |b|^2; the worst error seen at 2048 features is 6e-15 of it


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = CHUNK_ROWS) -> tuple[float, float]:
    """Improved precision and recall, arXiv:1904.06991, equations 1 and 2.

    Precision is the share of fakes inside a ball of any real (fidelity); recall is the share of reals inside a ball of
    any fake (variety). As in the paper a ball is closed: distance <= radius.

    Args:
        real: features [N, D] of real images, N > k.
        fake: features [M, D] of generated images, M > k.
        k: neighbours; 3 in the paper.
        chunk: rows and columns of distances held at once.

    Returns:
        (precision, recall), each in [0, 1].
    """
    real, fake = _checked(real, fake, k, smallest_fake=k + 1)
    real_radii, fake_radii = _squared_radii(real, k, chunk), _squared_radii(fake, k, chunk)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for f, r, squared, rounding in _distance_blocks(fake, real, chunk):
        precise[f] |= (squared <= real_radii[r] + rounding).any(dim=1)
        recalled[r] |= (squared <= fake_radii[f, None] + rounding).any(dim=0)
    return float(precise.double().mean()), float(recalled.double().mean())


def density_coverage(real: Tensor, fake: Tensor, k: int = 5, chunk: int = CHUNK_ROWS) -> tuple[float, float]:
    """Density and coverage, arXiv:2002.09797, section 3.

    Density is the number of reals' balls that hold a fake, averaged over the fakes and divided by k (fidelity, robust
    against outliers among the reals); coverage is the share of reals whose ball holds a fake (variety). As the authors
    compute it a ball is open: distance < radius, so that among k + 1 equal reals every ball is empty.

    Args:
        real: features [N, D] of real images, N > k.
        fake: features [M, D] of generated images, M >= 1.
        k: neighbours; 5 in the paper.
        chunk: rows and columns of distances held at once.

    Returns:
        (density, coverage): at least 0 and about 1 where the sets agree; in [0, 1].
    """
    real, fake = _checked(real, fake, k, smallest_fake=1)
    radii = _squared_radii(real, k, chunk)
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    holding = 0
    for _, r, squared, rounding in _distance_blocks(fake, real, chunk):
        inside = squared < radii[r] - rounding
        holding += int(inside.sum())
        covered[r] |= inside.any(dim=0)
    return holding / (k * len(fake)), float(covered.double().mean())


def _checked(real: Tensor, fake: Tensor, k: int, smallest_fake: int) -> tuple[Tensor, Tensor]:
    """Both as float64, moved so that the reals' mean is 0: short vectors lose less in |a|^2 + |b|^2 - 2ab."""
    real, fake = finite_rows(real), finite_rows(fake)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"got real features {real.shape[1]} wide and fake {fake.shape[1]}; expected one width")
    if k < 1:
        raise ValueError(f"got k = {k}; expected at least 1")
    for name, features, smallest in (("real", real, k + 1), ("fake", fake, smallest_fake)):
        if len(features) < smallest:
            raise ValueError(f"got {len(features)} {name} features; expected at least {smallest} for k = {k}")
    mean = real.mean(dim=0)
    return real - mean, fake - mean


def _squared_radii(features: Tensor, k: int, chunk: int) -> Tensor:
    """[N] squared distance of each row to its k-th nearest other row."""
    nearest = features.new_full((len(features), k), torch.inf)
    for rows, columns, squared, _ in _distance_blocks(features, features, chunk):
        if rows == columns:
            squared.fill_diagonal_(torch.inf)  # itself
        nearest[rows] = torch.cat([nearest[rows], squared], dim=1).topk(k, largest=False).values
    return nearest[:, -1]


def _distance_blocks(a: Tensor, b: Tensor, chunk: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Rows of a, rows of b, their squared distances [A, B], and how far each of these may be off [A, B]."""
    for rows in _ranges(len(a), chunk):
        for columns in _ranges(len(b), chunk):
            lengths = a[rows].square().sum(dim=1, keepdim=True) + b[columns].square().sum(dim=1)
            squared = torch.addmm(lengths, a[rows], b[columns].T, alpha=-2).clamp_min_(0)
            yield rows, columns, squared, lengths * ROUNDING


def _ranges(num: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, num)) for start in range(0, num, chunk))
