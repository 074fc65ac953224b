"""Features made to be searched, in place of those of a network: millions are wanted, and no images are at hand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

LATENT, PER_CLUSTER, NOISE, BLOCK = 64, 100, 0.02, 16384


def clustered_blocks(num: int, h_dim: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Unit vectors float32 [<= BLOCK, h_dim], `num` in all: a mixture of num / 100 clusters in random order.

    Sizes of clusters follow a Pareto law (exponent 1.5), centres and offsets are normal in a space of 64 dimensions
    whose scales fall as 1 / sqrt(dimension), offsets 0.3 to 0.7 times as wide as centres; lifted to h_dim by an
    orthonormal map, and normal noise of 0.02 added to every coordinate (h_dim 2048: 0.9 in length against about 2.5).
    """
    rng = np.random.default_rng(seed)
    num_clusters, latent = max(1, num // PER_CLUSTER), min(LATENT, h_dim)
    sizes = rng.pareto(1.5, num_clusters) + 0.3
    cluster = rng.choice(num_clusters, num, p=sizes / sizes.sum())
    scales = ((1 + np.arange(latent)) ** -0.5).astype(np.float32)
    centres = rng.standard_normal((num_clusters, latent), dtype=np.float32) * scales
    spread = 0.3 + 0.4 * rng.random((num_clusters, 1), dtype=np.float32)
    lift = np.linalg.qr(rng.standard_normal((h_dim, latent)))[0].T.astype(np.float32)
    for start in range(0, num, BLOCK):
        own = cluster[start : start + BLOCK]
        offsets = spread[own] * rng.standard_normal((len(own), latent), dtype=np.float32) * scales
        rows = (centres[own] + offsets) @ lift
        rows += np.float32(NOISE) * rng.standard_normal(rows.shape, dtype=np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(num: int, h_dim: int, seed: int = 0) -> np.ndarray:
    """All of them, float32 [num, h_dim]."""
    return _filled(np.empty((num, h_dim), dtype=np.float32), seed)


def clustered_file(path: Path, num: int, h_dim: int, seed: int = 0) -> None:
    """The same as float16 in an .npy file, written block by block."""
    shape = (num, h_dim)
    _filled(np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape), seed)


def unclustered(num: int, h_dim: int, seed: int = 0) -> np.ndarray:
    """Directions without any structure: no cell is nearer than another."""
    rows = np.random.default_rng(seed).standard_normal((num, h_dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _filled(features: np.ndarray, seed: int) -> np.ndarray:
    start = 0
    for block in clustered_blocks(len(features), features.shape[1], seed):
        features[start : start + len(block)] = block
        start += len(block)
    return features
