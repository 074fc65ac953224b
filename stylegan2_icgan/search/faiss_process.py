"""The process that holds faiss, and the only module that imports it.

Importing faiss into a process that forks workers later can hang them, depending on the order of imports, so the process
that trains, or makes a data set for it, never does. torch is not imported here: the process starts in a second.
"""

import contextlib
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from torch_utils.command_line import UserError

KEY_BLOCK = 65536  # rows made float32 and unit at a time: 512 MiB at width 2048
REMEDY = "faiss is missing; install it with: pip install faiss-cpu, or use the exact method, which needs nothing"


class Where(NamedTuple):
    """A place of features on disk that any process can map."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def serve(connection: Connection, where: Where, num_threads: int, whole: bool) -> None:
    """Answer (rows, count) with the ids int64 [Q, count] of the highest scores, until told no more."""
    try:
        import faiss
    except ImportError:
        connection.send(UserError(REMEDY))
        return
    faiss.omp_set_num_threads(num_threads)
    features = np.memmap(where.file, dtype=where.dtype, mode="r", shape=where.shape, offset=where.offset)
    connection.send(faiss.__version__)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            rows, count = connection.recv()
            queries = features[rows].astype(np.float32)
            if not whole:
                queries = _unit(queries)
            connection.send(_best(faiss, queries, features, count, whole))


def _best(faiss: Any, queries: np.ndarray, features: np.ndarray, count: int, whole: bool) -> np.ndarray:
    """Ids int64 [Q, count] of the nearest rows, block by block where rows have to be made float32 and unit first."""
    step = len(features) if whole else KEY_BLOCK
    distances, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(features), step):
        keys = np.ascontiguousarray(features[start : start + step], dtype=np.float32)
        if not whole:
            keys = _unit(keys)
        near, found = faiss.knn(queries, keys, min(count, len(keys)))
        distances, ids = np.concatenate([distances, near], axis=1), np.concatenate([ids, found + start], axis=1)
        best = np.argsort(distances, axis=1, kind="stable")[:, :count]
        distances, ids = np.take_along_axis(distances, best, axis=1), np.take_along_axis(ids, best, axis=1)
    return ids


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows float32 [B, d] at unit length; divided by their largest value first, whose square float32 may not hold."""
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
