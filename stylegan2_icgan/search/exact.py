"""Exact neighbours: every score in float32, those that matter again in float64."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_icgan.search.copies import first_of_each, place_in
from stylegan2_icgan.search.index_files import Index
from stylegan2_icgan.search.ranking import rank
from stylegan2_icgan.search.shortlist import Shortlist
from stylegan2_icgan.search.unit_rows import UnitRows, highest_precision, product_bound

QUERY_BLOCK, KEY_BLOCK = 2048, 4096  # 32 MiB of scores at a time: they stay in the cache until they are filtered
LIMIT = 1024  # candidates beyond 8 k that a query may have before it is scored in float64
DOUBTFUL_ELEMENTS = 1 << 24  # of float64 scores at a time for queries that float32 can't decide


class ExactSearch:
    """All scores in float32, blockwise; the candidates that its rounding leaves open are ranked in float64.

    Equal to a search in float64 throughout: see `Shortlist` for the argument and `product_bound` for the error. A query
    with more near duplicates than that can sort out is scanned in float64. Of rows that are equal byte for byte the
    first k + 1 are searched, since the others can't be among the answers.

    Args:
        unit: the rows, N of them.
        k: how many, 1 <= k < N.
    """

    def __init__(self, unit: UnitRows, k: int) -> None:
        self.unit, self.k = unit, k
        self.description: dict[str, Any] = {"method": "exact", "k": k, "recall": 1.0}

    def query_order(self) -> np.ndarray:
        return np.arange(len(self.unit))

    def save(self, folder: Path) -> None:
        """Write index.json: what was chosen, and why; there are no arrays."""
        Index(self.description, {}).save(folder, self.unit.features, self.k)

    def search(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 [Q, k], nearest first, and Euclidean distances float32 [Q, k] of the rows int64 [Q]."""
        parts = [self._search_block(rows[start : start + QUERY_BLOCK]) for start in range(0, len(rows), QUERY_BLOCK)]
        if not parts:
            return np.empty((0, self.k), dtype=np.int64), np.empty((0, self.k), dtype=np.float32)
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([distances for _, distances in parts])

    def _search_block(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        listed = Shortlist(len(rows), self.k, 2 * self.unit.bound, limit=8 * self.k + LIMIT)
        query, key = self._scan(listed, rows, torch.float32)
        sure = np.flatnonzero(~listed.overflow)
        ids, distances = np.empty((len(rows), self.k), np.int64), np.empty((len(rows), self.k), np.float32)
        ids[sure], distances[sure] = rank(self.unit, rows[sure], np.searchsorted(sure, query), key, self.k)
        doubtful = np.flatnonzero(listed.overflow)
        step = max(1, DOUBTFUL_ELEMENTS // len(self._keys))
        for start in range(0, len(doubtful), step):
            at = doubtful[start : start + step]
            ids[at], distances[at] = self._search_double(rows[at])
        return ids, distances

    def _search_double(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All scores in float64; lists may be as long as the data, so only few rows at a time."""
        slack = 2 * product_bound(self.unit.h_dim, torch.float64)
        query, key = self._scan(Shortlist(len(rows), self.k, slack, limit=len(self.unit)), rows, torch.float64)
        return rank(self.unit, rows, query, key, self.k)

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        """Rows that may be an answer, int64 ascending."""
        return np.flatnonzero(first_of_each(self.unit.first_equal, self.k + 1))

    def _scan(self, listed: Shortlist, rows: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Queries and their candidates, int64 [T]."""
        keys = self._keys

        def block(start: int, stop: int) -> torch.Tensor:
            if len(keys) == len(self.unit):
                return self.unit.block(start, stop, dtype)
            return self.unit.take(keys[start:stop], dtype)

        scan(listed, self.unit.take(rows, dtype), place_in(keys, rows), block, len(keys))
        query, place, _ = listed.finish()
        return query, keys[place]


def scan(
    listed: Shortlist, queries: torch.Tensor, rows: np.ndarray, block: Callable[[int, int], torch.Tensor], num: int
) -> None:
    """Offer a shortlist the scores of all keys 0 .. num - 1 against its queries.

    Blocks of keys always have the same bounds, and begin where the queries lie: data is often sorted by class, and near
    ones seen first make a sharp filter.

    Args:
        queries: [Q', d]; only the first Q are looked at, where Q' > Q (products of one shape are always the same).
        rows: int64 [Q], which key each query itself is; -1: none.
        block: gives the keys start .. stop - 1, [B, d].
    """
    room = queries.new_empty(len(queries) * min(KEY_BLOCK, num))  # for scores, used again and again
    num_blocks, here = -(-num // KEY_BLOCK), int(np.median(rows)) // KEY_BLOCK
    with highest_precision():
        for number in range(num_blocks):
            start = (here + number) % num_blocks * KEY_BLOCK
            keys = block(start, min(start + KEY_BLOCK, num))
            scores = torch.mm(queries, keys.T, out=room[: len(queries) * len(keys)].view(len(queries), len(keys)))
            scores = scores[: len(rows)].to(torch.promote_types(scores.dtype, torch.float32))
            hide_own(scores, rows, start)
            listed.offer(scores, start)


def hide_own(scores: torch.Tensor, rows: np.ndarray, start: int) -> None:
    """Give every query itself the score -inf: it is left out by its id, whatever equals it."""
    own = np.flatnonzero((rows >= start) & (rows < start + scores.shape[1]))
    at = torch.from_numpy(own).to(scores.device), torch.from_numpy(rows[own] - start).to(scores.device)
    scores[at] = -torch.inf
