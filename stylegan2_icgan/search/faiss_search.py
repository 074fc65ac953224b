"""Exact neighbours by faiss, in a process of its own."""

import multiprocessing
import tempfile
import weakref
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_icgan.search.faiss_process import Where, serve
from stylegan2_icgan.search.index_files import Index
from stylegan2_icgan.search.ranking import rank
from stylegan2_icgan.search.unit_rows import UnitRows
from torch_utils.command_line import UserError

EXTRA = 16  # candidates beyond k, so that float32 does not decide who is k-th


class FaissSearch:
    """Candidates by `faiss.knn`, ranked in float64 here; the process that holds faiss ends with this object.

    Exact but for near duplicates: where more than a few rows are so near each other that float32 can't tell them apart,
    faiss decides which of them are candidates.

    Args:
        unit: the rows, N of them.
        k: how many, 1 <= k < N.

    Raises:
        UserError: faiss is not installed.
    """

    def __init__(self, unit: UnitRows, k: int) -> None:
        self.unit, self.k = unit, k
        self.description: dict[str, Any] = {"method": "faiss", "k": k, "num_candidates": k + EXTRA}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="faiss-")
        process = context.Process(
            target=serve,
            args=(theirs, _on_disk(unit.features, Path(self._folder.name)), torch.get_num_threads(), unit.as_they_lie),
            daemon=True,
        )
        process.start()
        theirs.close()
        self._close = weakref.finalize(self, _end, process, self._connection, self._folder)
        self.description["faiss"] = self._answer()

    def query_order(self) -> np.ndarray:
        return np.arange(len(self.unit))

    def save(self, folder: Path) -> None:
        """Write index.json: what was chosen, and why; there are no arrays."""
        Index(self.description, {}).save(folder, self.unit.features, self.k)

    def search(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 [Q, k], nearest first, and Euclidean distances float32 [Q, k] of the rows int64 [Q]."""
        count = min(self.k + EXTRA, len(self.unit) - 1)
        keys = self._answer((rows, count + 1))  # the row itself is among them
        query = np.repeat(np.arange(len(rows)), count + 1)
        flat = keys.reshape(-1)
        keep = flat != rows[query]
        return rank(self.unit, rows, query[keep], flat[keep], self.k)

    def close(self) -> None:
        """End the process."""
        self._close()

    def _answer(self, question: tuple[np.ndarray, int] | None = None) -> Any:
        """The next message of the process, after a question was put to it."""
        try:
            if question is not None:
                self._connection.send(question)
            answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise UserError("the process that runs faiss ended early (out of memory?); use the exact method") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _on_disk(features: np.ndarray, folder: Path) -> Where:
    """File, type, shape and offset of the features, for another process to map."""
    if not (isinstance(features, np.memmap) and features.flags.c_contiguous and features.filename):
        np.save(folder / "features.npy", features)
        features = np.load(folder / "features.npy", mmap_mode="r")
    assert isinstance(features, np.memmap)
    # A view of a map keeps the offset of the whole: count from where the file begins in memory.
    base = features
    while isinstance(base.base, np.memmap):
        base = base.base
    shift = features.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return Where(str(features.filename), features.dtype.str, features.shape, base.offset + shift)


def _end(process: multiprocessing.process.BaseProcess, connection: Connection, folder: Any) -> None:
    connection.close()
    process.join(timeout=5)
    if process.is_alive():
        process.terminate()
    folder.cleanup()
