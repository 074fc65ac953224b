"""Features and neighbours of a data set, stored in one folder beside it."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from stylegan2_icgan.features import Extractor, restore_extractor
from torch_utils.command_line import UserError
from training.dataset import ImageFolderDataset
from training.randomness import hashed

FORMAT, MANIFEST = 1, "manifest.json"


@dataclass(frozen=True)
class InstanceStore:
    """Features and neighbours of every image of one data set, in one folder.

    manifest.json        format, data set, extractor, k, counts
    files.txt            CRC-32 and name of every image, one a line, in the order of the rows
    features.npy         float32 [N, h_dim], rows of unit length
    features_mirror.npy  the same of the horizontally flipped images (for DA(i))
    neighbours.npy       int64 [N, k], nearest first, the row itself never among them
    radii.npy            float32 [N, k]: column k' - 1 is the radius of the neighbourhood of k'
    extractor.safetensors  fitted tensors of the extractor, where it has any
    """

    folder: Path
    manifest: dict[str, Any]
    extractor_state: dict[str, torch.Tensor]

    @cached_property
    def features(self) -> np.ndarray:
        return self._array("features", self.h_dim, np.float32)

    @cached_property
    def features_mirror(self) -> np.ndarray:
        return self._array("features_mirror", self.h_dim, np.float32)

    @cached_property
    def neighbours(self) -> np.ndarray:
        return self._array("neighbours", self.k, np.int64)

    @cached_property
    def radii(self) -> np.ndarray:
        return self._array("radii", self.k, np.float32)

    @property
    def k(self) -> int:
        return int(self.manifest["k"])

    @property
    def h_dim(self) -> int:
        return int(self.manifest["extractor"]["h_dim"])

    def extractor(self, weights: Path | None = None, device: torch.device | None = None) -> Extractor:
        """The extractor that made this store."""
        return restore_extractor(
            self.manifest["extractor"], self.extractor_state, weights, device or torch.device("cpu")
        )

    def map_arrays(self) -> Self:
        """Map and check all arrays now: a store replaced on disk later is then still the one that was opened.

        Raises:
            UserError: an array that is damaged, of another shape, or with neighbours that do not exist.
        """
        num = int(self.manifest["num_images"])
        arrays = [self.features, self.features_mirror, self.neighbours, self.radii]
        if arrays[2].min() < 0 or arrays[2].max() >= num or (arrays[2] == np.arange(num)[:, None]).any():
            raise UserError(
                f"{self.folder}/neighbours.npy names images that are not there, or an image as its own neighbour; "
                f"delete {self.folder} and it is made again"
            )
        return self

    def _array(self, name: str, width: int, dtype: type) -> np.ndarray:
        expected = (int(self.manifest["num_images"]), width)
        file = self.folder / f"{name}.npy"
        try:
            array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise UserError(f"{file} is damaged; delete {self.folder} and it is made again") from None
        if array.shape != expected or array.dtype != dtype:
            raise UserError(
                f"{file} is {array.dtype} {list(array.shape)}, its manifest says {np.dtype(dtype)} {list(expected)}; "
                f"delete {self.folder} and it is made again"
            )
        return array

    def __getstate__(self) -> dict[str, Any]:  # workers map the arrays themselves
        return {name: getattr(self, name) for name in ("folder", "manifest", "extractor_state")}


def default_folder(dataset: ImageFolderDataset) -> Path:
    """Beside the zip (`digits.instances`), or in the user's cache folder where that can't be written."""
    path = dataset.path.resolve()
    beside = path.with_name(f"{path.stem}{_subset_tag(dataset)}.instances")
    if beside.exists() or os.access(beside.parent, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        cache
        / "stylegan2_icgan"
        / f"{path.stem}-{int(hashed(*str(path).encode())[0]):016x}{_subset_tag(dataset)}.instances"
    )


def _subset_tag(dataset: ImageFolderDataset) -> str:
    """A subset is a data set of its own: its features and neighbours never refer to images left out."""
    return f".subset{len(dataset)}-{dataset.subset_seed}" if dataset.is_subset else ""


def open_store(folder: Path, dataset: ImageFolderDataset) -> InstanceStore:
    """The store in `folder`, checked against the data set by file name and content.

    Raises:
        UserError: not a store, another format, or made from other files; the first that differs is named.
    """
    manifest = read_manifest(folder)
    try:
        lines = (folder / "files.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"instance store {folder} can't be read ({error}); delete it and it is made again") from None
    remedy = f"it was made from other data; delete {folder} and it is made again"
    for row, name in enumerate(dataset.names):
        stored_crc, _, stored_name = lines[row].partition(" ") if row < len(lines) else ("", "", "")
        if stored_name != name:
            there = repr(stored_name) if stored_name else "nothing"
            raise UserError(
                f"instance store {folder}: image {row} of --data={dataset.path} is {name!r}, the store has {there}; "
                f"{remedy}"
            )
        if stored_crc != f"{dataset.checksum(row):08x}":
            raise UserError(
                f"instance store {folder}: the content of {name!r} in --data={dataset.path} differs; {remedy}"
            )
    if len(lines) > len(dataset):
        extra = lines[len(dataset)].partition(" ")[2]
        raise UserError(f"instance store {folder} has {extra!r}, which --data={dataset.path} lacks; {remedy}")
    return InstanceStore(folder, manifest, read_extractor_state(folder)).map_arrays()


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a store.

    Raises:
        UserError: missing, damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"], int(manifest["k"]), int(manifest["num_images"]), manifest["extractor"]["h_dim"]
    except (OSError, ValueError, TypeError, KeyError):
        if path.exists():
            raise UserError(f"{path} is damaged; delete {folder} and it is made again") from None
        raise UserError(f"{folder} is no instance store: it has no {MANIFEST}; name another --instances=DIR") from None
    if found[0] != FORMAT:
        raise UserError(
            f"instance store {folder} has format {found[0]}; this version reads {FORMAT}. Delete it and it is made "
            "again"
        )
    return manifest


def read_extractor_state(folder: Path) -> dict[str, torch.Tensor]:
    """Fitted tensors of the extractor that made a store; {} where it has none."""
    file = folder / "extractor.safetensors"
    if not file.exists():
        return {}
    try:
        return safetensors.torch.load_file(file)
    except (OSError, SafetensorError):
        raise UserError(f"{file} is damaged; delete {folder} and it is made again") from None
