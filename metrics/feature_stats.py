"""Mean and covariance of a stream of features, in float64."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

GROUPS = 10  # of a jackknife: as many matrices [D, D] are held
BLOCK_ROWS = 2048  # rows folded in at once: one matrix product of this height, 32 MiB at 2048 features


class FeatureStats:
    """Number, mean and unbiased covariance of rows that arrive in pieces of any size.

    Rows are gathered into blocks of `BLOCK_ROWS` before they are folded in, so the same rows in the same order give the
    same bits however they were cut. Each block is centred on its own mean first: sums of raw squares would lose the
    covariance of features whose mean is large. Everything is kept on the CPU.
    """

    def __init__(self) -> None:
        self._folded: _Moments | None = None
        self._waiting: list[Tensor] = []  # fewer than BLOCK_ROWS rows

    @classmethod
    def from_moments(cls, num: int, mean: Tensor, cov: Tensor) -> Self:
        """Statistics known from elsewhere.

        Args:
            num: how many rows they describe, at least 2.
            mean: [D].
            cov: unbiased covariance [D, D].
        """
        if num < 2 or mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            given = f"num = {num}, mean {list(mean.shape)}, cov {list(cov.shape)}"
            raise ValueError(f"got {given}; expected num >= 2, mean [D], cov [D, D]")
        stats = cls()
        stats._folded = _Moments(num, finite_rows(mean[None])[0].cpu(), finite_rows(cov).cpu() * (num - 1))
        return stats

    @property
    def num(self) -> int:
        """Rows seen."""
        return (self._folded.num if self._folded else 0) + sum(map(len, self._waiting))

    @property
    def num_features(self) -> int | None:
        """Width D; None before the first append."""
        if self._folded is not None:
            return len(self._folded.mean)
        return self._waiting[0].shape[1] if self._waiting else None

    @property
    def mean(self) -> Tensor:
        """[D] float64."""
        return self._all_rows(at_least=1).mean

    @property
    def cov(self) -> Tensor:
        """[D, D] float64, divided by N - 1."""
        moments = self._all_rows(at_least=2)
        return moments.scatter / (moments.num - 1)

    def mean_and_cov(self) -> tuple[Tensor, Tensor]:
        """Both, for the price of one: rows that wait for a block to fill are folded in for every look."""
        moments = self._all_rows(at_least=2)
        return moments.mean, moments.scatter / (moments.num - 1)

    def append(self, features: Tensor) -> Self:
        """Add rows.

        Args:
            features: [N, D], any real dtype and device, finite; N may be 0.

        Returns:
            Itself, so that `FeatureStats().append(features)` is an expression.

        Raises:
            ValueError: not two-dimensional, another width than before, or a value that is not finite.
        """
        check_finite(features)
        self._check_width(features.shape[1])
        for some in features.detach().split(BLOCK_ROWS):  # all at once in float64 would be twice a large set of float32
            self._waiting.append(some.cpu().to(torch.float64, copy=True))
            if sum(map(len, self._waiting)) >= BLOCK_ROWS:
                rows = torch.cat(self._waiting)
                self._folded = _merged(self._folded, _moments(rows[:BLOCK_ROWS]))
                self._waiting = [rows[BLOCK_ROWS:].clone()]  # a view would keep the whole block alive
        return self

    def settle(self) -> None:
        """Fold in the rows that wait for a block to fill: there will be no more of them."""
        self._folded, self._waiting = self._all_rows(at_least=0), []

    def __add__(self, other: "FeatureStats") -> "FeatureStats":
        """Statistics of the rows of both; neither changes."""
        total = FeatureStats()
        for stats in (self, other):
            if stats.num_features is not None:
                total._check_width(stats.num_features)
                total._folded = _merged(total._folded, stats._all_rows(at_least=0))
        return total

    def _all_rows(self, at_least: int) -> "_Moments":
        if self.num < at_least:
            raise ValueError(f"expected at least {at_least} rows of features, got {self.num}")
        # The waiting rows go on waiting: to look at the statistics does not move the block boundaries.
        if self._folded is not None and not self._waiting:
            return self._folded
        none = torch.zeros(0, self.num_features or 0, dtype=torch.float64)
        return _merged(self._folded, _moments(torch.cat([none, *self._waiting])))

    def _check_width(self, width: int) -> None:
        if self.num_features not in (None, width):
            raise ValueError(f"got features {width} wide after features {self.num_features} wide; expected one width")


class GroupedStats:
    """Statistics of rows that arrive in pieces of any size, in consecutive groups of nearly equal size.

    Args:
        num: how many rows will come.
        groups: at most; each gets two rows or more.
    """

    def __init__(self, num: int, groups: int = GROUPS) -> None:
        count = max(1, min(groups, num // 2))
        self._edges = [group * num // count for group in range(count + 1)]
        self._stats = [FeatureStats() for _ in range(count)]
        self._seen = 0

    def append(self, features: Tensor) -> Self:
        """Add rows [N, D].

        Raises:
            ValueError: more than were announced, or as `FeatureStats` does.
        """
        if self._seen + len(features) > self._edges[-1]:
            raise ValueError(f"got more than the {self._edges[-1]} rows announced")
        for number, (start, stop) in enumerate(zip(self._edges, self._edges[1:], strict=False)):
            part = features[max(start - self._seen, 0) : max(stop - self._seen, 0)]
            if not len(part):
                continue
            stats = self._stats[number].append(part)
            if stats.num == stop - start:
                stats.settle()
        self._seen += len(features)
        return self

    def groups(self) -> list[FeatureStats]:
        """Of every group.

        Raises:
            ValueError: fewer rows came than were announced.
        """
        if self._seen < self._edges[-1]:
            raise ValueError(f"got {self._seen} of {self._edges[-1]} rows")
        return list(self._stats)


def finite_rows(features: Tensor) -> Tensor:
    """A float64 copy of [N, D] features on their device (on the CPU if they are on MPS, which has no float64).

    Raises:
        ValueError: not two-dimensional, or a value is NaN or infinite.
    """
    check_finite(features)
    device = "cpu" if features.device.type == "mps" else features.device
    return features.detach().to(device).to(torch.float64, copy=True)


def check_finite(features: Tensor) -> None:
    """Refuse what is no set of features.

    Raises:
        ValueError: not two-dimensional, or a value is NaN or infinite.
    """
    if features.ndim != 2:
        raise ValueError(f"got features of shape {list(features.shape)}; expected [N, D]")
    bad, first = 0, -1
    for start in range(0, len(features), BLOCK_ROWS):  # in blocks: the mask of a large set would double its memory
        rows = (~features[start : start + BLOCK_ROWS].isfinite().all(dim=1)).nonzero()
        if len(rows) and first < 0:
            first = start + int(rows[0])
        bad += len(rows)
    if bad:
        raise ValueError(f"got NaN or infinity in {bad} of {len(features)} rows, first in row {first}")


class _Moments(NamedTuple):
    num: int
    mean: Tensor  # [D]
    scatter: Tensor  # [D, D] sum of (x - mean) (x - mean)^T


def _moments(rows: Tensor) -> _Moments:
    mean = rows.mean(dim=0) if len(rows) else rows.new_zeros(rows.shape[1])
    centred = rows - mean
    return _Moments(len(rows), mean, centred.T @ centred)


def _merged(a: _Moments | None, b: _Moments) -> _Moments:
    """Moments of two sets of rows together. Chan, Golub, LeVeque: Updating formulae (1979), pairwise update."""
    if a is None or a.num == 0 or b.num == 0:
        return b if a is None or a.num == 0 else a
    num, step = a.num + b.num, b.mean - a.mean
    scatter = torch.addr(a.scatter, step, step, alpha=a.num * b.num / num).add_(b.scatter)
    return _Moments(num, a.mean + step * (b.num / num), scatter)
