"""k nearest neighbours by cosine similarity."""

from collections.abc import Callable

import numpy as np
import torch

QUERY_BLOCK, KEY_BLOCK = 1024, 8192  # 64 MiB of float64 scores at a time


def nearest_neighbours(
    features: np.ndarray, k: int, progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest neighbours of every row, exact, the row itself excluded by its id (never by its rank).

    With 101 identical rows each still gets k distinct others. Scores are float64: in float32 the cosines of rows closer
    than 5e-4 can't be told apart. Memory is O(block x N), never N x N.

    Args:
        features: float32 [N, d], rows of unit length.
        k: how many, 1 <= k < N.
        progress: called with the number of rows done.

    Returns:
        ids int64 [N, k], nearest first, and Euclidean distances float32 [N, k]; column k' - 1 is the radius of the
        neighbourhood of k' (IC-GAN section 3: the kernel width is the size of the neighbourhood).

    Raises:
        ValueError: k out of range.
    """
    count = len(features)
    if not 1 <= k < count:
        raise ValueError(f"k is {k}; expected 1 <= k < {count}, the number of rows")
    ids = np.empty((count, k), dtype=np.int64)
    distances = np.empty((count, k), dtype=np.float32)
    for start in range(0, count, QUERY_BLOCK):
        rows = torch.arange(start, min(start + QUERY_BLOCK, count))
        queries = _unit_rows(features, slice(start, start + len(rows)))
        best = _best_ids(queries, rows, features, k)
        ids[start : start + len(rows)] = best.numpy()
        for row, query, chosen in zip(rows.tolist(), queries, best, strict=True):
            # Differences, not 2 - 2 cos: exact to the last bit for near duplicates.
            others = _unit_rows(features, chosen.numpy())
            distances[row] = (others - query).norm(dim=1).numpy()
        if progress is not None:
            progress(start + len(rows))
    return ids, distances


def _best_ids(queries: torch.Tensor, rows: torch.Tensor, features: np.ndarray, k: int) -> torch.Tensor:
    """int64 [Q, k]: ids of the highest cosine similarities, merged over blocks of keys."""
    scores = torch.zeros(len(queries), 0, dtype=queries.dtype)
    ids = torch.zeros(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(features), KEY_BLOCK):
        keys = _unit_rows(features, slice(start, start + KEY_BLOCK))
        block = queries @ keys.T
        own = (rows >= start) & (rows < start + len(keys))
        block[own.nonzero().squeeze(1), rows[own] - start] = -torch.inf
        top, place = block.topk(min(k, len(keys)), dim=1)
        scores, ids = torch.cat([scores, top], dim=1), torch.cat([ids, place + start], dim=1)
        scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
        ids = ids.gather(1, order)
    return ids


def _unit_rows(features: np.ndarray, rows: slice | np.ndarray) -> torch.Tensor:
    """float64 rows of unit length to the last bit: float32 ones are off by more than near duplicates differ."""
    x = torch.from_numpy(np.array(features[rows], dtype=np.float64))
    return x / x.norm(dim=1, keepdim=True)
