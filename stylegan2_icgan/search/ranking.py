"""The order of a few candidates of each query, to the last digits: what every search ends with."""

import numpy as np
import torch

from stylegan2_icgan.search.unit_rows import UnitRows, product_bound

SLAB_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 26}  # of gathered rows at a time: 1 MiB of float64, close to the cache
NEAR = 1e-3  # squared distances below are taken from differences: 2 - 2 cos would lose their digits


def rank(unit: UnitRows, rows: np.ndarray, query: np.ndarray, key: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the candidates of each query, in float64, equal distances in order of their ids.

    The result for a query depends on its own candidates only, bit for bit, not on what else is ranked with them.

    Args:
        rows: int64 [Q], row of each query.
        query: int64 [T], ascending: which of the Q queries a candidate belongs to; at least k for every one.
        key: int64 [T], row of the candidate, never twice for one query.

    Returns:
        ids int64 [Q, k] and Euclidean distances float32 [Q, k].
    """
    if not len(rows):
        return np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
    counts = np.bincount(query, minlength=len(rows))
    assert counts.min(initial=k) >= k, "a query has fewer candidates than neighbours are wanted"
    if len(key) > 2 * k * len(rows):
        query, key = _thin(unit, rows, query, key, k)
        counts = np.bincount(query, minlength=len(rows))
    squared = _squared_distances(unit, rows, query, key)
    order = np.lexsort((key, squared, query))
    first = np.cumsum(counts) - counts
    best = order[first[:, None] + np.arange(k)]
    return key[best], np.sqrt(squared[best]).astype(np.float32)


def _thin(
    unit: UnitRows, rows: np.ndarray, query: np.ndarray, key: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Drop candidates whose float32 score is too low for the k nearest, whatever its error (see Shortlist)."""
    # Products of stored rows that are very short or long would vanish or overflow in float32.
    dtype = torch.float32 if unit.moderate else torch.float64
    scores = _products(unit, rows, query, key, dtype) / (unit.norms[rows][query] * unit.norms[key])
    order = np.lexsort((-scores, query))
    counts = np.bincount(query, minlength=len(rows))
    kth = scores[order[np.cumsum(counts) - counts + k - 1]]
    kept = scores >= kth[query] - 2 * product_bound(unit.h_dim, torch.float32)
    return query[kept], key[kept]


def _squared_distances(unit: UnitRows, rows: np.ndarray, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """float64 [T] squared Euclidean distances of unit vectors; differences, not 2 - 2 cos, for near duplicates."""
    cosines = _products(unit, rows, query, key, torch.float64) / (unit.norms[rows][query] * unit.norms[key])
    squared = np.maximum(2 - 2 * cosines, 0)
    near = np.flatnonzero(squared < NEAR)
    step = max(1, SLAB_ELEMENTS["cpu"] // unit.h_dim)
    for start in range(0, len(near), step):
        at = near[start : start + step]
        x, y = (_double(unit, ids) / unit.norms[ids][:, None] for ids in (key[at], rows[query[at]]))
        squared[at] = np.einsum("ij,ij->i", x - y, x - y)
    return squared


def _products(unit: UnitRows, rows: np.ndarray, query: np.ndarray, key: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Products [T] of the stored rows (not yet of unit length), each summed in an order that depends on d alone."""
    if unit.device.type == "cuda":
        return products_on_device(unit, rows[query], key, dtype)
    kind = np.float64 if dtype == torch.float64 else np.float32
    products = np.empty(len(key), dtype=kind)
    step = max(1, SLAB_ELEMENTS["cpu"] // unit.h_dim)
    gathered = np.empty((step, unit.h_dim), dtype=unit.features.dtype)
    cast = np.empty((step, unit.h_dim), dtype=kind)
    gathered_tensor, cast_tensor = torch.from_numpy(gathered), torch.from_numpy(cast)
    ends = np.append(np.flatnonzero(np.diff(query)) + 1, len(query))  # of the candidates of each query
    start = 0
    for end in ends.tolist():
        own = unit.features[rows[query[start]]].astype(kind)
        for begin in range(start, end, step):
            count = min(step, end - begin)
            unit.features.take(key[begin : begin + count], axis=0, out=gathered[:count], mode="clip")
            cast_tensor[:count] = gathered_tensor[:count]  # torch makes float64 of float16 faster than NumPy
            # vecdot sums row by row; a matrix product may sum the same row differently beside others.
            np.vecdot(cast[:count], own, out=products[begin : begin + count])
        start = end
    return products


def products_on_device(unit: UnitRows, left: np.ndarray, right: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Products [T] of the rows `left` and `right`, in slabs of one shape, whose sums repeat exactly."""
    step = max(1, SLAB_ELEMENTS[unit.device.type] // unit.h_dim)
    products = np.empty(len(left), dtype=np.float64)
    for start in range(0, len(left), step):
        ids = [np.resize(side[start : start + step], step) for side in (left, right)]
        x, y = (unit.take(part, dtype) for part in ids)
        lengths = unit.norms[ids[0]] * unit.norms[ids[1]]
        count = min(step, len(left) - start)
        products[start : start + count] = ((x * y).sum(dim=1).double().cpu().numpy() * lengths)[:count]
    return products


def _double(unit: UnitRows, ids: np.ndarray) -> np.ndarray:
    return np.take(unit.features, ids, axis=0).astype(np.float64)
