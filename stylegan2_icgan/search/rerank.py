"""Neighbours by cheap scores of all rows and true distances of the few best."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from stylegan2_icgan.search.exact import ExactSearch, scan
from stylegan2_icgan.search.index_files import Index
from stylegan2_icgan.search.projection import fit_basis, project
from stylegan2_icgan.search.ranking import rank
from stylegan2_icgan.search.recall import Truth
from stylegan2_icgan.search.shortlist import Shortlist
from stylegan2_icgan.search.unit_rows import UnitRows, as_tensor

DIM = 256  # of the projected rows
QUERY_BLOCK = 512  # products of this many queries, filled up where there are fewer: one shape, one result
EXTRA = (150, 350, 750, 1550)  # candidates beyond k to try


class RerankSearch:
    """Scores of all rows in bfloat16, or of their projections on the leading principal directions in float32; the best
    few hundred candidates are ranked in float64.

    Args:
        unit: the rows, N of them.
        k: how many, 1 <= k < N.
        num_candidates: how many are ranked.
        projected: float32 [N, dim]; None: bfloat16 scores.
    """

    def __init__(self, unit: UnitRows, k: int, num_candidates: int, projected: np.ndarray | None) -> None:
        self.unit, self.k, self.num_candidates, self.projected = unit, k, num_candidates, projected
        self._exact = ExactSearch(unit, k)
        scores = "bfloat16" if projected is None else f"{projected.shape[1]} principal directions, float32"
        self.description: dict[str, Any] = {
            "method": "rerank",
            "k": k,
            "scores": scores,
            "num_candidates": num_candidates,
        }

    @classmethod
    def build(cls, unit: UnitRows, k: int, truth: Truth, target_recall: float, bf16: bool) -> tuple[Self | None, str]:
        """As many candidates as the target takes on a sample; None, and why, when none of the numbers tried does."""
        if not bf16 and unit.h_dim < 2 * DIM:
            return None, f"features {unit.h_dim} wide are too short to be projected on {DIM} directions"
        projected = None if bf16 else project(unit, fit_basis(unit, DIM))
        recall = 0.0
        for extra in EXTRA:
            if k + extra >= len(unit):
                return None, f"{len(unit)} rows are few"
            search = cls(unit, k, k + extra, projected)
            distances = search.search(truth.rows)[1]
            recall = truth.recall(distances)
            if truth.surely(distances) >= target_recall:
                search.description |= {"target_recall": target_recall, "recall": recall}
                return search, f"recall {recall:.4f} with {k + extra} candidates a row"
        return None, f"re-ranking {k + EXTRA[-1]} candidates a row reaches a recall of {recall:.3f} only"

    def query_order(self) -> np.ndarray:
        return np.arange(len(self.unit))

    def search(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 [Q, k], nearest first, and Euclidean distances float32 [Q, k] of the rows int64 [Q]."""
        ids, distances = np.empty((len(rows), self.k), np.int64), np.empty((len(rows), self.k), np.float32)
        for start in range(0, len(rows), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            ids[part], distances[part] = self._search_block(rows[part])
        return ids, distances

    def _search_block(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        listed = Shortlist(len(rows), self.num_candidates, slack=0.0, limit=4 * self.num_candidates + 1024)
        scan(listed, self._cheap_rows(np.resize(rows, QUERY_BLOCK)), rows, self._cheap_block, len(self.unit))
        query, key, _ = listed.finish()
        sure, crowded = np.flatnonzero(~listed.overflow), np.flatnonzero(listed.overflow)
        ids, distances = np.empty((len(rows), self.k), np.int64), np.empty((len(rows), self.k), np.float32)
        ids[sure], distances[sure] = rank(self.unit, rows[sure], np.searchsorted(sure, query), key, self.k)
        ids[crowded], distances[crowded] = self._exact.search(rows[crowded])  # thousands of duplicates
        return ids, distances

    def _cheap_rows(self, rows: np.ndarray) -> torch.Tensor:
        if self.projected is None:
            return self.unit.take(rows).bfloat16()
        return torch.from_numpy(np.take(self.projected, rows, axis=0)).to(self.unit.device)

    def _cheap_block(self, start: int, stop: int) -> torch.Tensor:
        if self.projected is None:
            return self.unit.block(start, stop).bfloat16()
        return as_tensor(self.projected[start:stop]).to(self.unit.device)

    def save(self, folder: Path) -> None:
        """Write the projected rows, and index.json last."""
        arrays = {} if self.projected is None else {"projected": self.projected}
        Index(self.description, arrays).save(folder, self.unit.features, self.k)

    @classmethod
    def load(cls, unit: UnitRows, k: int, index: Index) -> Self:
        search = cls(unit, k, index.description["num_candidates"], index.arrays.get("projected"))
        search.description = index.description
        return search
