"""Neighbours in an inverted file: only the cells around a query are searched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from stylegan2_icgan.search.candidates import Candidates
from stylegan2_icgan.search.copies import first_of_each, place_in
from stylegan2_icgan.search.exact import (
    DOUBTFUL_ELEMENTS,
    KEY_BLOCK,
    LIMIT,
    QUERY_BLOCK,
    ExactSearch,
    hide_own,
)
from stylegan2_icgan.search.index_files import Index
from stylegan2_icgan.search.kmeans import kmeans, nearest_centre
from stylegan2_icgan.search.projection import fit_basis
from stylegan2_icgan.search.ranking import rank
from stylegan2_icgan.search.recall import Truth
from stylegan2_icgan.search.unit_rows import UnitRows, highest_precision, product_bound
from training.randomness import permutation

QUERIES = 8192  # of a call that go through the cells together: 64 MiB at width 2048
ROW_BLOCK = 4096  # rows given their cells at a time
DIM = 128  # of the space in which cells are made
CELLS_PER_ROOT, ROWS_PER_CELL, ITERATIONS = 4, 64, 10  # cells per square root of N; k-means of so many rows a cell
NUM_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # cells searched for a query to try
WORTH_SHARE = 0.25  # of all rows: whoever searches more had better search all, in larger products
MIN_ROWS = 2000  # fewer are searched faster whole


class IvfSearch:
    """An inverted file: rows in cells around the centres of k-means, a query searched in the cells nearest to it.

    Within these cells the result is exact: scores in float32, and what their rounding leaves open in float64. Cells are
    made on projected rows; those of every row are in the index, so no process measures them anew.

    Args:
        unit: the rows, N of them.
        k: how many, 1 <= k < N.
        probes: uint16 or int32 [N, most probes], the nearest cells of each row, nearest first; the first is its own.
        num_probes: how many of them are searched.

    Source: Jegou, Douze, Schmid, Product quantization for nearest neighbor search, PAMI 2011, section IV.
    """

    def __init__(self, unit: UnitRows, k: int, probes: np.ndarray, num_probes: int) -> None:
        self.unit, self.k, self.probes, self.num_probes = unit, k, probes, num_probes
        self._exact = ExactSearch(unit, k)
        own = np.asarray(probes[:, 0])
        self._order = np.argsort(own, kind="stable")
        self._sizes = np.bincount(own, minlength=int(probes.max()) + 1)  # of cells
        # Of rows equal byte for byte the first k + 1 of a cell are searched: the others can't be among the answers.
        kept = first_of_each(own.astype(np.int64) * len(unit) + unit.first_equal, k + 1)
        self._keys = self._order[kept[self._order]]
        self._bounds = np.concatenate([[0], np.cumsum(np.bincount(own[kept], minlength=len(self._sizes)))])
        self.description: dict[str, Any] = {
            "method": "ivf",
            "k": k,
            "num_cells": len(self._sizes),
            "num_probes": num_probes,
        }

    @classmethod
    def build(
        cls, unit: UnitRows, k: int, truth: Truth, target_recall: float, seed: int = 0
    ) -> tuple[Self | None, str]:
        """As many cells a query as the target takes on a sample; None, and why, when the most do not."""
        if len(unit) < MIN_ROWS:
            return None, f"{len(unit)} rows are too few for cells"
        probes, recall = nearest_cells(unit, seed), 0.0
        for num_probes in NUM_PROBES:
            search = cls(unit, k, probes, num_probes)
            searched = search.searched_share(truth.rows)
            if searched > WORTH_SHARE:
                return (
                    None,
                    f"{num_probes} cells hold {searched:.0%} of all rows and reach a recall of {recall:.3f} only",
                )
            distances = search.search(truth.rows)[1]
            recall = truth.recall(distances)
            if truth.surely(distances) >= target_recall:
                search.description |= {"target_recall": target_recall, "recall": recall}
                return search, f"recall {recall:.4f} in {num_probes} of {search.description['num_cells']} cells"
        return None, f"{NUM_PROBES[-1]} cells a row reach a recall of {recall:.3f} only: the rows hardly cluster"

    def query_order(self) -> np.ndarray:
        """Cell by cell, cells near each other in turn."""
        return self._order

    def searched_share(self, rows: np.ndarray) -> float:
        """Mean share of all rows that lie in the cells searched for these rows."""
        sizes = self._sizes[np.asarray(self.probes[rows, : self.num_probes])]
        return float(sizes.sum(axis=1).mean()) / len(self.unit)

    def search(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 [Q, k], nearest first, and Euclidean distances float32 [Q, k] of the rows int64 [Q]."""
        ids, distances = np.empty((len(rows), self.k), np.int64), np.empty((len(rows), self.k), np.float32)
        for start in range(0, len(rows), QUERIES):
            part = slice(start, start + QUERIES)
            ids[part], distances[part] = self._search_part(rows[part])
        return ids, distances

    def _search_part(self, rows: np.ndarray, dtype: torch.dtype = torch.float32) -> tuple[np.ndarray, np.ndarray]:
        """Near duplicates that float32 can't tell apart are scored again in float64, few rows at a time."""
        probes, queries = np.asarray(self.probes[rows, : self.num_probes]), self.unit.take(rows, dtype)
        if dtype == torch.float32:
            listed = Candidates(queries, self.k, 2 * self.unit.bound, limit=8 * self.k + LIMIT)
        else:
            listed = Candidates(queries, self.k, 2 * product_bound(self.unit.h_dim, dtype), limit=len(self.unit))
        # Own cells first: the k-th best there is what a row of any other cell has to reach.
        for own, columns in ((True, probes[:, :1]), (False, probes[:, 1:])):
            for cell, members in _by_cell(columns):
                keys = self._keys[self._bounds[cell] : self._bounds[cell + 1]]
                for start in range(0, len(keys), KEY_BLOCK):
                    self._offer_block(listed, queries, rows, members, keys[start : start + KEY_BLOCK], own)
        query, key, counts = listed.finish()
        sure, few = np.flatnonzero(counts >= self.k), np.flatnonzero((counts < self.k) & ~listed.overflow)
        ids, distances = np.empty((len(rows), self.k), np.int64), np.empty((len(rows), self.k), np.float32)
        at = counts[query] >= self.k
        ids[sure], distances[sure] = rank(self.unit, rows[sure], np.searchsorted(sure, query[at]), key[at], self.k)
        ids[few], distances[few] = self._exact.search(rows[few])  # their cells hold too few rows
        doubtful = np.flatnonzero(listed.overflow)
        most = int(np.diff(self._bounds)[probes[doubtful]].sum(axis=1).max(initial=1))
        step = max(1, DOUBTFUL_ELEMENTS // most)
        for start in range(0, len(doubtful), step):
            some = doubtful[start : start + step]
            ids[some], distances[some] = self._search_part(rows[some], torch.float64)
        return ids, distances

    def _offer_block(
        self,
        listed: Candidates,
        queries: torch.Tensor,
        rows: np.ndarray,
        members: np.ndarray,
        keys: np.ndarray,
        own: bool,
    ) -> None:
        """Offer the scores of some keys of one cell against the queries `members`, blockwise."""
        block = self.unit.take(keys, queries.dtype)
        for start in range(0, len(members), QUERY_BLOCK):
            part = members[start : start + QUERY_BLOCK]
            with highest_precision():
                scores = queries[torch.from_numpy(part).to(queries.device)] @ block.T
            if own:
                hide_own(scores, place_in(keys, rows[part]), 0)
            listed.offer(scores, part, keys, sharpen=own)

    def save(self, folder: Path) -> None:
        """Write the cells of every row, and index.json last."""
        Index(self.description, {"probes": self.probes}).save(folder, self.unit.features, self.k)

    @classmethod
    def load(cls, unit: UnitRows, k: int, index: Index) -> Self:
        search = cls(unit, k, index.arrays["probes"], index.description["num_probes"])
        search.description = index.description
        return search


def nearest_cells(unit: UnitRows, seed: int) -> np.ndarray:
    """The cells nearest to each row, [N, most probes], uint16 or, where there are many cells, int32.

    Cells near each other have numbers near each other.
    """
    num_cells = min(int(CELLS_PER_ROOT * len(unit) ** 0.5), len(unit))
    basis = fit_basis(unit, DIM, seed) if unit.h_dim > 2 * DIM else None
    sample = np.sort(permutation(len(unit), seed)[: num_cells * ROWS_PER_CELL])

    def shorten(rows: torch.Tensor) -> torch.Tensor:
        return rows if basis is None else rows @ basis

    with highest_precision():
        points = torch.cat([shorten(unit.take(sample[at : at + ROW_BLOCK])) for at in range(0, len(sample), ROW_BLOCK)])
        centres = kmeans(
            lambda ids: points[torch.from_numpy(ids).to(points.device)], len(points), num_cells, seed, ITERATIONS
        ).centres
        centres = centres[_neighbourly_order(centres, seed)]
        offsets = centres.square().sum(dim=1)
        probes = np.empty(
            (len(unit), min(NUM_PROBES[-1], num_cells)), dtype=np.uint16 if num_cells <= 1 << 16 else np.int32
        )
        for start in range(0, len(unit), ROW_BLOCK):
            rows = shorten(unit.block(start, min(start + ROW_BLOCK, len(unit))))
            squared = torch.addmm(offsets, rows, centres.T, alpha=-2)  # but for a constant of the row
            nearest = squared.topk(probes.shape[1], dim=1, largest=False).indices
            probes[start : start + ROW_BLOCK] = nearest.cpu().numpy()
    return probes


def _neighbourly_order(centres: torch.Tensor, seed: int) -> torch.Tensor:
    """Centres grouped by a second, coarser k-means: int64 [C]."""

    def read(ids: np.ndarray) -> torch.Tensor:
        return centres[torch.from_numpy(ids).to(centres.device)]

    groups = kmeans(read, len(centres), max(1, int(len(centres) ** 0.5)), seed, ITERATIONS).centres
    return nearest_centre(centres, groups)[1].argsort(stable=True)


def _by_cell(columns: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each cell named in [Q, P], and the queries int64 that name it."""
    if columns.size == 0:
        return
    cells = columns.reshape(-1).astype(np.int64)
    order = np.argsort(cells, kind="stable")
    starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
    for group in np.split(order, starts[1:]):
        yield int(cells[group[0]]), group // columns.shape[1]
