"""Rows that are equal byte for byte: placeholders and black frames come in thousands, and few of them can be named."""

import hashlib

import numpy as np

READ_BYTES = 1 << 26  # of rows read at a time


def first_equal(features: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """For each row of [N, d] the smallest id of the rows that equal it byte for byte, int64 [N].

    Only rows whose lengths `norms`, float64 [N], are equal are read, and told apart by a digest of 128 bits. Memory is
    O(block) for rows and O(N) for numbers.
    """
    first = np.arange(len(features))
    order = np.argsort(norms, kind="stable")
    same = np.diff(norms[order]) == 0
    suspects = np.sort(order[np.append(same, False) | np.append(False, same)])
    digests = np.empty((len(suspects), 2), dtype=np.uint64)
    step = max(1, READ_BYTES // features[:1].nbytes)
    for start in range(0, len(suspects), step):
        rows = np.take(features, suspects[start : start + step], axis=0)
        joined = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
        digests[start : start + step] = np.frombuffer(joined, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: the smallest id of equal ones comes first
    begins = np.append(True, (digests[order[1:]] != digests[order[:-1]]).any(axis=1))[: len(order)]
    ids = suspects[order]
    first[ids] = ids[begins][np.cumsum(begins) - 1]
    return first


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """bool [N]: which rows are among the first `count` of those that have their label, int64 [N].

    With k + 1 copies of a row kept none of the others can be among the k nearest of any row: k of those kept are as
    near, have smaller ids and are not the row itself.
    """
    order = np.argsort(labels, kind="stable")
    kept = np.ones(len(labels), dtype=bool)
    kept[order[count:]] = labels[order[count:]] != labels[order[: len(labels) - count]]
    return kept


def place_in(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where the rows stand in the ascending keys, int64 [Q]; -1 for those that are not there."""
    place = np.minimum(np.searchsorted(keys, rows), len(keys) - 1)
    return np.where(keys[place] == rows, place, -1)
