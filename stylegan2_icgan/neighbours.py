"""k nearest neighbours by cosine similarity: one door to all ways of searching."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from stylegan2_icgan.search.choice import METHODS, Speed, choose_method, estimate_sec, measure_speed, recall_rows
from stylegan2_icgan.search.exact import ExactSearch
from stylegan2_icgan.search.faiss_search import FaissSearch
from stylegan2_icgan.search.index_files import Index
from stylegan2_icgan.search.ivf import IvfSearch
from stylegan2_icgan.search.recall import Truth
from stylegan2_icgan.search.rerank import RerankSearch
from stylegan2_icgan.search.unit_rows import UnitRows

__all__ = [
    "METHODS",
    "Search",
    "Speed",
    "choose_method",
    "estimate_sec",
    "make_search",
    "measure_recall",
    "measure_speed",
    "nearest_neighbours",
]

CHUNK = 8192  # queries between two reports of progress
TARGET_RECALL = {"rerank": 0.999, "ivf": 0.99}


class Search(Protocol):
    """One way to search the rows of `features`; the result for a row never depends on the other rows of a call.

    description: JSON: method, parameters, measured recall; all that decides the numbers.
    unit: the rows it searches.
    """

    description: dict[str, Any]
    unit: UnitRows

    def query_order(self) -> np.ndarray:
        """int64 permutation of range(N): rows near each other in it are cheap to search together."""
        ...

    def search(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neighbours of some rows.

        Args:
            rows: int64 [Q], in any order.

        Returns:
            ids int64 [Q, k], nearest first, the row itself excluded by its id, all distinct, equal distances in order
            of their ids; and Euclidean distances float32 [Q, k] of the rows at unit length.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the arrays of the index, where there are any, so that another process need not build it."""
        ...


def make_search(
    features: np.ndarray,
    k: int,
    method: str = "auto",
    device: torch.device | None = None,
    folder: Path | None = None,
    target_recall: float | None = None,
    speed: Speed | None = None,
    processes: int = 1,
) -> Search:
    """Build a search, or load it from a folder where it was saved.

    An approximate method is measured while it is built, and searches more until it reaches its target on a sample. If
    it can't (rows that do not cluster), ivf gives way to rerank, and that to exact: `description` then holds `asked`
    and `reason`. With a folder the index is saved there, and every process that names it gets the same numbers.

    Args:
        features: float16 or float32 [N, d], in memory or memory-mapped.
        k: how many, 1 <= k < N.
        method: auto, exact, faiss, rerank or ivf.
        device: where products are computed: cuda, anything else is the CPU.
        folder: for the index; nothing else is written there but index.json and the arrays it names.
        target_recall: of rerank (None: 0.999) and ivf (None: 0.99).
        speed: measured now when None and needed.
        processes: how many will share the queries, for the choice of auto.

    Raises:
        ValueError: k out of range, features of another kind, or a row without a direction.
        UserError: an unknown method, or faiss asked for and missing.
    """
    num = len(features)
    if not 1 <= k < num:
        raise ValueError(f"k is {k}; expected 1 <= k < {num}, the number of rows")
    device = device or torch.device("cpu")
    asked = {"asked": method, "asked_recall": target_recall}
    index = Index.load(folder, features, k) if folder is not None else None
    if index is not None and {name: index.description.get(name) for name in asked} == asked:
        return _loaded(UnitRows(features, device), k, index)
    name, reason = choose_method(method, num, features.shape[1], k, device, speed, processes)
    unit = UnitRows(features, device)
    search, notes = _built(unit, k, name, target_recall, speed)
    search.description |= asked | {"reason": "; ".join([reason, *notes])}
    if folder is not None:
        search.save(folder)
    return search


def _built(
    unit: UnitRows, k: int, name: str, target_recall: float | None, speed: Speed | None
) -> tuple[Search, list[str]]:
    """A search by `name`, or by the next surer one when its target is out of reach; and what happened."""
    if name == "faiss":
        return FaissSearch(unit, k), []
    notes: list[str] = []
    truth = Truth(unit, k, recall_rows(len(unit))) if name != "exact" else None
    for way in ("ivf", "rerank"):
        if truth is None or (name == "rerank" and way == "ivf"):
            continue
        target = TARGET_RECALL[way] if target_recall is None else target_recall
        found: Search | None
        if way == "ivf":
            found, note = IvfSearch.build(unit, k, truth, target)
        else:
            bf16 = (speed or measure_speed(unit.device)).bf16_pays
            found, note = RerankSearch.build(unit, k, truth, target, bf16)
        notes.append(f"{way}: {note}")
        if found is not None:
            return found, notes
    return ExactSearch(unit, k), [*notes, "so exact"] if notes else []


def _loaded(unit: UnitRows, k: int, index: Index) -> Search:
    name = index.description["method"]
    if name == "ivf":
        return IvfSearch.load(unit, k, index)
    if name == "rerank":
        return RerankSearch.load(unit, k, index)
    search: Search = FaissSearch(unit, k) if name == "faiss" else ExactSearch(unit, k)
    search.description |= index.description
    return search


def measure_recall(search: Search, features: np.ndarray, k: int, sample: int = 1000, seed: int = 0) -> float:
    """Recall@k on a sample of rows: the share of neighbours no farther than the truly k-th nearest.

    By distance, so that either of two equally near ones is right.
    """
    unit = search.unit if search.unit.features is features else UnitRows(features, search.unit.device)
    truth = Truth(unit, k, sample, seed)
    return truth.recall(search.search(truth.rows)[1])


def nearest_neighbours(
    features: np.ndarray,
    k: int,
    progress: Callable[[int], None] | None = None,
    method: str = "exact",
    device: torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest neighbours of every row, the row itself excluded by its id (never by its rank).

    With 101 identical rows each still gets k distinct others. Memory is O(block x N), never N x N.

    Args:
        features: float16 or float32 [N, d]; lengths do not matter.
        k: how many, 1 <= k < N.
        progress: called with the number of rows done.
        method: exact, faiss, rerank, ivf or auto.

    Returns:
        ids int64 [N, k], nearest first, and Euclidean distances float32 [N, k]; column k' - 1 is the radius of the
        neighbourhood of k' (IC-GAN section 3: the kernel width is the size of the neighbourhood).

    Raises:
        ValueError: k out of range.
    """
    search = make_search(features, k, method, device)
    order = search.query_order()
    ids, distances = np.empty((len(features), k), np.int64), np.empty((len(features), k), np.float32)
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        ids[rows], distances[rows] = search.search(rows)
        if progress is not None:
            progress(start + len(rows))
    return ids, distances
