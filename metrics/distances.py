"""Squared distances between two sets of features, block by block: never a matrix of all pairs.

Features stay as they are given (float32 at 2048 features and 50,000 rows is 0.4 GiB); blocks of them become float64.
Whether a point lies exactly on a ball's surface decides ties (a generated copy of a training image does), and round-off
must not: distances that agree within `ROUNDING` of the vectors' squared lengths are equal.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from metrics.feature_stats import check_finite

CHUNK_ROWS = 2048  # the largest matrix of distances is [CHUNK_ROWS, CHUNK_ROWS], 32 MiB
ROUNDING = 1e-12  # of |a|^2 + |b|^2; the worst error seen at 2048 features is 6e-15 of it


class Rows:
    """Features [N, D] of any real dtype, and a point to which they are moved; blocks of them are float64.

    Args:
        features: finite; on MPS, which has no float64, they are brought to the CPU.
        centre: float64 [D]; short vectors lose less in |a|^2 + |b|^2 - 2ab. None: their own mean.
    """

    def __init__(self, features: Tensor, centre: Tensor | None = None) -> None:
        check_finite(features)
        self.features = features.detach().cpu() if features.device.type == "mps" else features.detach()
        self.centre = self._mean() if centre is None else centre

    def __len__(self) -> int:
        return len(self.features)

    @property
    def device(self) -> torch.device:
        return self.features.device

    def block(self, rows: slice | Tensor) -> Tensor:
        """float64 [B, D]"""
        return self.features[rows].double() - self.centre

    def _mean(self) -> Tensor:
        total = torch.zeros(self.features.shape[1], dtype=torch.float64, device=self.features.device)
        for rows in ranges(len(self), CHUNK_ROWS):
            total += self.features[rows].double().sum(dim=0)
        return total / max(len(self), 1)


class Block(NamedTuple):
    """The distances of some rows of a to some rows of b."""

    a: slice
    b: slice
    squared: Tensor  # float64 [A, B], at least 0
    rounding: Tensor  # float64 [A, B]: how far each of these may be off


def distance_blocks(a: Rows, b: Rows, chunk: int = CHUNK_ROWS, upper: bool = False) -> Iterator[Block]:
    """All pairs of rows, at most `chunk` by `chunk` at a time; `upper`: only blocks on and above the diagonal.

    Raises:
        ValueError: the two were moved to different centres.
    """
    if not torch.equal(a.centre, b.centre):
        raise ValueError("the features of the two sets were moved to different centres; expected one")
    for rows in ranges(len(a), chunk):
        left = a.block(rows)
        left_lengths = left.square().sum(dim=1, keepdim=True)
        for columns in ranges(len(b), chunk):
            if upper and columns.start < rows.start:
                continue
            right = b.block(columns)
            lengths = left_lengths + right.square().sum(dim=1)
            squared = torch.addmm(lengths, left, right.T, alpha=-2).clamp_min_(0)
            yield Block(rows, columns, squared, lengths * ROUNDING)


def squared_radii(rows: Rows, k: int, chunk: int = CHUNK_ROWS) -> Tensor:
    """float64 [N], squared distance of each row to its k-th nearest OTHER row.

    A row is left out of its own neighbours by its place, not by its distance: duplicates count as neighbours. Every
    block serves its rows and its columns, so half of all pairs are computed.
    """
    nearest = torch.full((len(rows), k), torch.inf, dtype=torch.float64, device=rows.device)
    for a, b, squared, _ in distance_blocks(rows, rows, chunk, upper=True):
        if a == b:
            squared.fill_diagonal_(torch.inf)  # itself
        else:
            nearest[b] = torch.cat([nearest[b], squared.T], dim=1).topk(k, largest=False).values
        nearest[a] = torch.cat([nearest[a], squared], dim=1).topk(k, largest=False).values
    return nearest[:, -1]


def nearest_rows(queries: Rows, rows: Rows, chunk: int = CHUNK_ROWS) -> tuple[Tensor, Tensor]:
    """Of each query its nearest row: squared distance float64 [Q] and number int64 [Q]; of duplicates any."""
    best = torch.full((len(queries),), torch.inf, dtype=torch.float64, device=rows.device)
    which = torch.zeros(len(queries), dtype=torch.int64, device=rows.device)
    for a, b, squared, _ in distance_blocks(queries, rows, chunk):
        least, place = squared.min(dim=1)
        closer = least < best[a]
        best[a] = torch.where(closer, least, best[a])
        which[a] = torch.where(closer, place + b.start, which[a])
    return best, which


def ranges(num: int, chunk: int) -> Iterator[slice]:
    """Consecutive slices of `chunk` that cover `num`, the last one possibly shorter."""
    return (slice(start, min(start + chunk, num)) for start in range(0, num, chunk))
