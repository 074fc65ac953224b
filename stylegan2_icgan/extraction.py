"""Features of a whole data set: in shards, by any number of processes, going on where killed work stopped."""

import functools
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_icgan.extractors.extractor import Extractor
from stylegan2_icgan.extractors.given_features import FeatureFile
from stylegan2_icgan.features import restore_extractor
from stylegan2_icgan.shards import shard_arrays, write_shard
from stylegan2_icgan.store import FEATURES, MIRROR
from torch_utils.command_line import UserError
from torch_utils.files import array_checksum
from training.dataset import ImageFolderDataset

DECODERS = 4  # threads that read and decode ahead of the extractor
MAX_SHARDS = 8192  # files in a folder
BLOCK = 4096  # rows copied at a time


class FeatureJob:
    """Features of `rows` images a shard, of the images and of their mirror images.

    Args:
        dataset: the images.
        folder: where the shards go.
        rows: images a shard; more where that would be too many files.
        dtype: 'float32' or 'float16' on disk.
        made_with: what `restore_extractor` needs beside the device: description, state, weights.
        device: of the extractor.
    """

    def __init__(
        self,
        dataset: ImageFolderDataset,
        folder: Path,
        rows: int,
        dtype: str,
        made_with: tuple[dict[str, Any], dict[str, torch.Tensor], Path | None],
        device: torch.device,
    ) -> None:
        self.dataset, self.folder, self.dtype, self.made_with, self.device = dataset, folder, dtype, made_with, device
        self.rows = max(rows, -(-len(dataset) // MAX_SHARDS))
        self.num_shards = -(-len(dataset) // self.rows)

    @functools.cached_property
    def extractor(self) -> Extractor:
        return restore_extractor(*self.made_with, self.device)

    def __getstate__(self) -> dict[str, Any]:  # another process builds the extractor itself
        return {name: value for name, value in self.__dict__.items() if name != "extractor"}

    def shard_rows(self, shard: int) -> np.ndarray:
        return np.arange(shard * self.rows, min((shard + 1) * self.rows, len(self.dataset)))

    def __call__(self, shard: int) -> None:
        batch = self.extractor.batch
        rows = self.shard_rows(shard)
        parts: list[list[np.ndarray]] = [[], []]
        for images in decoded_ahead(self.dataset, [rows[i : i + batch] for i in range(0, len(rows), batch)]):
            for part, seen in zip(parts, (images, images.flip(3)), strict=True):
                part.append(self.extractor(seen).cpu().numpy())
        features, mirror = (np.concatenate(part) for part in parts)
        self._check(features, rows)
        self._check(mirror, rows)
        write_shard(self.folder, shard, [features.astype(self.dtype), mirror.astype(self.dtype)])

    def _check(self, features: np.ndarray, rows: np.ndarray) -> None:
        bad = ~(np.abs(np.linalg.norm(features, axis=1) - 1) < 1e-3)  # NaN is bad, too
        if bad.any():
            name = self.dataset.names[rows[bad.argmax()]]
            raise UserError(
                f"--data={self.dataset.path}: the feature of {name} has no direction (the extractor returned zero or "
                "non-finite values); remove the image or use another --extractor"
            )


def decoded_ahead(dataset: ImageFolderDataset, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
    """uint8 [N, C, H, W] of each batch, read and decoded in threads while the caller works on those before."""
    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        waiting: deque = deque()
        for rows in batches:
            waiting.append(pool.submit(dataset.images, rows))
            if len(waiting) > DECODERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def merge_features(job: FeatureJob, files: Sequence[Path], h_dim: int, say: Callable[[str], None]) -> dict[str, int]:
    """Write features and features of mirror images, each as one array; CRC-32 of each by file name."""
    arrays = [
        np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(job.dtype), shape=(len(job.dataset), h_dim))
        for file in files
    ]
    checksums = dict.fromkeys((file.name for file in files), 0)
    for shard in range(job.num_shards):
        for file, array, part in zip(files, arrays, shard_arrays(job, shard, len(files), say), strict=True):
            array[job.shard_rows(shard)] = part
            checksums[file.name] = zlib.crc32(part, checksums[file.name])
    for array in arrays:
        array.flush()
    return checksums


def copy_features(given: FeatureFile, folder: Path, dtype: str) -> dict[str, int]:
    """Write given features, rows of unit length, as features.npy, and as features_mirror.npy if there are any."""
    checksums = {}
    for name, mirror in ((FEATURES, False), (MIRROR, True))[: 1 + given.has_mirror]:
        shape = (len(given), given.h_dim)
        array = np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.dtype(dtype), shape=shape)
        for start in range(0, len(array), BLOCK):
            array[start : start + BLOCK] = given.rows(np.arange(start, min(start + BLOCK, len(array))), mirror)
        array.flush()
        if (array == array[0]).all():
            raise UserError(f"--instance-feats={given.path}: all rows are the same; there is nothing to tell apart")
        checksums[name] = array_checksum(array)
    return checksums
