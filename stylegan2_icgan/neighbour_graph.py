"""The neighbours of every instance, in shards of queries."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_icgan.neighbours import Search, make_search
from stylegan2_icgan.search.index_files import NAME
from stylegan2_icgan.shards import shard_arrays, write_shard
from torch_utils.command_line import UserError
from torch_utils.files import sha256

QUERIES = 8  # rows of a shard for every image of a shard of features: searching is cheaper than extracting
MAX_SHARDS = 256  # a shard is one call of the search: the larger, the less often all features are read


class NeighbourJob:
    """Neighbours of `rows` instances a shard; the whole set is searched for each.

    Args:
        features: the .npy file of all features.
        k: neighbours an instance.
        method, device: as for `make_search`, which finds its index in `index`.
        folder: where the shards go.
        rows: instances a shard; more where that would be too many calls.
        digest: of the index, which says which rows a shard holds.
    """

    def __init__(
        self,
        features: Path,
        k: int,
        method: str,
        device: torch.device,
        index: Path,
        folder: Path,
        rows: int,
        digest: str,
    ) -> None:
        self.features, self.k, self.method, self.device = features, k, method, device
        self.index, self.folder, self.digest = index, folder, digest
        num = len(np.load(features, mmap_mode="r"))
        self.rows = max(rows, -(-num // MAX_SHARDS))
        self.num_shards = -(-num // self.rows)

    @functools.cached_property
    def search(self) -> Search:
        search = make_search(np.load(self.features, mmap_mode="r"), self.k, self.method, self.device, self.index)
        if index_digest(self.index) != self.digest:
            raise UserError(f"{self.index} was changed while neighbours were searched for; start again")
        return search

    @functools.cached_property
    def order(self) -> np.ndarray:
        return self.search.query_order()

    def __getstate__(self) -> dict[str, Any]:  # another process loads the index itself
        return {name: value for name, value in self.__dict__.items() if name not in ("search", "order")}

    def shard_rows(self, shard: int) -> np.ndarray:
        return self.order[shard * self.rows : (shard + 1) * self.rows]

    def __call__(self, shard: int) -> None:
        ids, distances = self.search.search(self.shard_rows(shard))
        write_shard(self.folder, shard, [ids.astype(np.int32), distances])


def index_digest(index: Path) -> str:
    """SHA-256 of the description of an index, which holds the checksums of its arrays."""
    return sha256(index / NAME)


def merge_neighbours(job: NeighbourJob, folder: Path, say: Callable[[str], None]) -> None:
    """Write neighbours.npy, int32 [N, k], and radii.npy, float32 [N, k]."""
    shape = (len(job.order), job.k)
    neighbours = np.lib.format.open_memmap(folder / "neighbours.npy", mode="w+", dtype=np.int32, shape=shape)
    radii = np.lib.format.open_memmap(folder / "radii.npy", mode="w+", dtype=np.float32, shape=shape)
    for shard in range(job.num_shards):
        rows = job.shard_rows(shard)
        neighbours[rows], radii[rows] = shard_arrays(job, shard, 2, say)
    neighbours.flush()
    radii.flush()
