"""Squared distances between two sets of features, block by block: never a matrix of all pairs.

Blocks are float32 products with a bound on their error; float64 decides where the bound leaves a question open, so the
answers are those of float64 throughout, for little more than half the time on a CPU.

Whether a point lies exactly on a ball's surface decides ties (a generated copy of a training image does), and round-off
must not: distances that agree within `ROUNDING` of the vectors' squared lengths are equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metrics.feature_stats import check_finite
from torch_utils.float32 import exact_float32

CHUNK_ROWS = 2048  # the largest matrices are [CHUNK_ROWS, CHUNK_ROWS]: 16 MiB, 32 MiB of float64
ROUNDING = 1e-12  # of |a|^2 + |b|^2; the worst error of float64 seen at 2048 features is 6e-15 of it
UNDERFLOW = 1e-30  # beyond what products of float32 can lose by it
SPARE = 8  # candidates beyond the k nearest, so that the bound seldom leaves a question open
RANKED_ELEMENTS = 1 << 19  # of features of candidates at a time: 4 MiB


class Rows:
    """Features [N, D] of any real dtype, and a point to which they are moved; blocks of them are float64.

    Args:
        features: finite; on MPS, which has no float64, they are brought to the CPU.
        centre: float64 [D], of float32 numbers; short vectors lose less in |a|^2 + |b|^2 - 2ab. None: their own mean.
    """

    def __init__(self, features: Tensor, centre: Tensor | None = None) -> None:
        check_finite(features)
        self.features = features.detach().cpu() if features.device.type == "mps" else features.detach()
        self.centre = self._mean() if centre is None else centre

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        return self.features.shape[1]

    @property
    def device(self) -> torch.device:
        return self.features.device

    def block(self, rows: slice | Tensor) -> Tensor:
        """float64 [B, D]; [..., D] for a tensor of row numbers [...]."""
        return self.features[rows].double() - self.centre

    def block32(self, rows: slice) -> Tensor:
        """`block`, rounded to float32 [B, D]."""
        if self.features.dtype == torch.float64:
            return self.block(rows).float()
        return self.features[rows].float() - self.centre.float()  # one rounding, too: the centre is float32 itself

    @cached_property
    def lengths(self) -> Tensor:
        """float64 [N], squared."""
        lengths = self.centre.new_empty(len(self))  # first: small results between large blocks would break up the heap
        for rows in ranges(len(self), CHUNK_ROWS):
            lengths[rows] = self.block(rows).square_().sum(dim=1)
        return lengths

    def _mean(self) -> Tensor:
        total = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        for rows in ranges(len(self), CHUNK_ROWS):
            total += self.features[rows].double().sum(dim=0)
        return (total / max(len(self), 1)).float().double()


@dataclass(frozen=True)
class Block:
    """The distances of some rows of one set to some rows of another.

    Args:
        a, b: which rows.
        left, right: of which sets.
        least: float32 [A, B], at most the squared distance.
        most: float32 [A, B], at least the squared distance.
    """

    a: slice
    b: slice
    left: Rows
    right: Rows
    least: Tensor
    most: Tensor

    def within(self, squared_radii: Tensor, closed: bool = True) -> Tensor:
        """bool [A, B], which distances are at most (`closed`), or less than, radii float64 [A, 1] or [1, B]."""
        radii = squared_radii.float()
        inside = self.most < radii
        doubtful = (self.least <= radii) & ~inside
        rows, columns = (doubtful.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        if len(rows):
            squared, rounding = _in_float64(
                self.left.block(rows + self.a.start), self.right.block(columns + self.b.start)
            )
            exact = squared_radii.expand(inside.shape)[rows[:, None], columns]
            inside[rows[:, None], columns] = squared <= exact + rounding if closed else squared < exact - rounding
        return inside


def distance_blocks(a: Rows, b: Rows, chunk: int = CHUNK_ROWS, upper: bool = False) -> Iterator[Block]:
    """All pairs of rows, at most `chunk` by `chunk` at a time; `upper`: only blocks on and above the diagonal.

    Raises:
        ValueError: the two were moved to different centres.
    """
    if not torch.equal(a.centre, b.centre):
        raise ValueError("the features of the two sets were moved to different centres; expected one")
    error = _product_error(a.width)
    low, high = 1 - error, 2 * error
    for rows in ranges(len(a), chunk):
        left, left_lengths = a.block32(rows), a.lengths[rows, None]
        for columns in ranges(len(b), chunk):
            if upper and columns.start < rows.start:
                continue
            lengths = b.lengths[columns]
            least = (low * left_lengths - UNDERFLOW).float() + (low * lengths).float()
            with exact_float32():
                least = torch.addmm(least, left, b.block32(columns).T, alpha=-2)
            most = ((high * left_lengths + 2 * UNDERFLOW).float() + (high * lengths).float()).add_(least)
            # Features beyond 1e19 have no squares in float32: float64 decides about all of them.
            least.nan_to_num_(nan=-torch.inf, posinf=-torch.inf)
            yield Block(rows, columns, a, b, least, most)


def nearest(
    queries: Rows, rows: Rows, k: int, own: Tensor | None = None, chunk: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of each query: squared distances float64 [Q, k], ascending, and numbers int64 [Q, k].

    A row is left out of its own neighbours by its place, not by its distance: duplicates count as neighbours. Of equal
    rows any may be named.

    Args:
        queries: `rows` itself: nearest other rows, with every block serving its rows and its columns.
        own: int64 [Q], the row that each query is and that is left out; of `rows` itself known.
        k: at most as many rows as there are to choose from.
    """
    mutual = queries is rows
    if mutual:
        own = torch.arange(len(rows), device=rows.device)
    short = _Shortlist(len(queries), k + SPARE, rows.device)
    for block in distance_blocks(queries, rows, chunk, upper=mutual):
        if own is not None:
            _hide(block.least, own[block.a], block.b)
        short.offer(block.a, block.least, block.b.start)
        if mutual and block.a != block.b:
            short.offer(block.b, block.least.T, block.a.start)
    squared, which = short.ranked(queries, rows, k)
    open_ = (squared[:, -1] > short.least[:, -1].clamp_min(0)).nonzero()[:, 0]  # what is not listed may be nearer
    for some in open_.split(chunk):
        squared[some], which[some] = _nearest_in_float64(queries, rows, k, some, own, chunk)
    return squared, which


def squared_radii(rows: Rows, k: int, chunk: int = CHUNK_ROWS) -> Tensor:
    """float64 [N], squared distance of each row to its k-th nearest OTHER row."""
    return nearest(rows, rows, k, chunk=chunk)[0][:, -1]


def ranges(num: int, chunk: int) -> Iterator[slice]:
    """Consecutive slices of `chunk` that cover `num`, the last one possibly shorter."""
    return (slice(start, min(start + chunk, num)) for start in range(0, num, chunk))


class _Shortlist:
    """Of each query the rows whose distance may be least: those with the smallest lower bounds."""

    def __init__(self, num: int, size: int, device: torch.device) -> None:
        self.size = size
        self.least = torch.full((num, size), torch.inf, device=device)  # ascending; inf: no row
        self.which = torch.zeros(num, size, dtype=torch.int64, device=device)

    def offer(self, queries: slice, least: Tensor, start: int) -> None:
        """Lower bounds [A, B] of the distances of some queries to the rows from `start` on."""
        some, place = least.topk(min(self.size, least.shape[1]), dim=1, largest=False, sorted=False)
        both = torch.cat([self.least[queries], some], dim=1)
        numbers = torch.cat([self.which[queries], place + start], dim=1)
        self.least[queries], order = both.topk(self.size, dim=1, largest=False)
        self.which[queries] = numbers.gather(1, order)

    def ranked(self, queries: Rows, rows: Rows, k: int) -> tuple[Tensor, Tensor]:
        """Squared distances float64 [Q, k] and numbers int64 [Q, k] of the nearest of those listed."""
        squared = torch.empty(len(queries), k, dtype=torch.float64, device=rows.device)
        which = torch.empty(len(queries), k, dtype=torch.int64, device=rows.device)
        for some in ranges(len(queries), max(1, RANKED_ELEMENTS // (self.size * rows.width))):
            apart = _squared_between(queries.block(some), rows.block(self.which[some]))
            apart[self.least[some] == torch.inf] = torch.inf
            squared[some], order = apart.topk(k, dim=1, largest=False)
            which[some] = self.which[some].gather(1, order)
        return squared, which


def _nearest_in_float64(
    queries: Rows, rows: Rows, k: int, some: Tensor, own: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """As `nearest`, of some queries, throughout in float64."""
    left = queries.block(some)
    best = torch.full((len(some), k), torch.inf, dtype=torch.float64, device=rows.device)
    which = torch.zeros(len(some), k, dtype=torch.int64, device=rows.device)
    for columns in ranges(len(rows), chunk):
        squared, _ = _in_float64(left, rows.block(columns))
        if own is not None:
            _hide(squared, own[some], columns)
        numbers = torch.arange(columns.start, columns.stop, device=rows.device).expand_as(squared)
        best, order = torch.cat([best, squared], dim=1).topk(k, dim=1, largest=False)
        which = torch.cat([which, numbers], dim=1).gather(1, order)
    return best, which


def _hide(distances: Tensor, own: Tensor, columns: slice) -> None:
    """Give each query itself, the row `own`, the distance inf."""
    there = ((own >= columns.start) & (own < columns.stop)).nonzero()[:, 0]
    distances[there, own[there] - columns.start] = torch.inf


def _in_float64(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [A, B] of rows [A, D] and [B, D], at least 0, and how far each of these may be off."""
    lengths = left.square().sum(dim=1, keepdim=True) + right.square().sum(dim=1)
    return torch.addmm(lengths, left, right.T, alpha=-2).clamp_min_(0), lengths * ROUNDING


def _squared_between(queries: Tensor, rows: Tensor) -> Tensor:
    """[Q, K] of queries [Q, D] and rows [Q, K, D], by their differences: of equal rows exactly 0."""
    return rows.sub_(queries[:, None]).square_().sum(dim=2)


def _product_error(width: int) -> float:
    """Bound on |float32 - true| of |a|^2 + |b|^2 - 2ab, as a share of |a|^2 + |b|^2, whatever the order of summation.

    |computed - exact| <= gamma_n |a| |b| for a product of n terms, and |a| |b| <= (|a|^2 + |b|^2) / 2. Sixteen more
    roundings stand for those of the rows, their lengths, the sum, a radius that is compared, and `ROUNDING`.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
    """
    rounding = (width + 16) * torch.finfo(torch.float32).eps / 2
    return rounding / (1 - rounding)
