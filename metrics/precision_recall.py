"""Precision, recall, density and coverage: how k-nearest-neighbour balls of one set of features hold the other set.

Each feature vector is the centre of a ball that reaches to its k-th nearest neighbour among the OTHER vectors of its
set. Memory is that of the features and of a few blocks of distances (`metrics.distances`).
"""

import torch
from torch import Tensor

from metrics.distances import CHUNK_ROWS, Rows, distance_blocks, squared_radii


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
    reals, fakes = _checked(real, fake, k, smallest_fake=k + 1)
    real_radii, fake_radii = squared_radii(reals, k, chunk), squared_radii(fakes, k, chunk)
    precise = torch.zeros(len(fakes), dtype=torch.bool, device=fakes.device)
    recalled = torch.zeros(len(reals), dtype=torch.bool, device=reals.device)
    for block in distance_blocks(fakes, reals, chunk):
        precise[block.a] |= block.within(real_radii[None, block.b]).any(dim=1)
        recalled[block.b] |= block.within(fake_radii[block.a, None]).any(dim=0)
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
    reals, fakes = _checked(real, fake, k, smallest_fake=1)
    radii = squared_radii(reals, k, chunk)
    covered = torch.zeros(len(reals), dtype=torch.bool, device=reals.device)
    holding = 0
    for block in distance_blocks(fakes, reals, chunk):
        inside = block.within(radii[None, block.b], closed=False)
        holding += int(inside.sum())
        covered[block.b] |= inside.any(dim=0)
    return holding / (k * len(fakes)), float(covered.double().mean())


def _checked(real: Tensor, fake: Tensor, k: int, smallest_fake: int) -> tuple[Rows, Rows]:
    """Both, moved so that the reals' mean is 0."""
    reals = Rows(real)
    if fake.ndim == 2 and real.shape[1] != fake.shape[1]:
        raise ValueError(f"got real features {real.shape[1]} wide and fake {fake.shape[1]}; expected one width")
    fakes = Rows(fake.to(reals.device), reals.centre)
    if k < 1:
        raise ValueError(f"got k = {k}; expected at least 1")
    for name, rows, smallest in (("real", reals, k + 1), ("fake", fakes, smallest_fake)):
        if len(rows) < smallest:
            raise ValueError(f"got {len(rows)} {name} features; expected at least {smallest} for k = {k}")
    return reals, fakes
