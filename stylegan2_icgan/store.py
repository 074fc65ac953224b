"""Features and neighbours of a data set, stored in one folder beside it."""

import json
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
from torch_utils.files import array_checksum, companion
from training.dataset import ImageFolderDataset

FORMAT, MANIFEST, FILES, EXTRACTOR_STATE = 2, "manifest.json", "files.txt", "extractor.safetensors"
LOOKED_AT = 64  # rows of the features when a store is opened
FEATURES, MIRROR, NEIGHBOURS, RADII = "features.npy", "features_mirror.npy", "neighbours.npy", "radii.npy"


@dataclass(frozen=True)
class InstanceStore:
    """Features and neighbours of every image of one data set, in one folder.

    manifest.json        format, data set, extractor, k, how neighbours were found and their recall, checksums
    files.txt            CRC-32 and name of every image, one a line, in the order of the rows
    features.npy         float32 or float16 [N, h_dim], rows of unit length
    features_mirror.npy  the same of the horizontally flipped images (for DA(i)); given features may lack it
    neighbours.npy       int32 [N, k], nearest first, the row itself never among them
    radii.npy            float32 [N, k]: column k' - 1 is the radius of the neighbourhood of k'
    extractor.safetensors  fitted tensors of the extractor, where it has any
    """

    folder: Path
    manifest: dict[str, Any]
    extractor_state: dict[str, torch.Tensor]

    @cached_property
    def features(self) -> np.ndarray:
        return self._array(FEATURES, self.h_dim, self.manifest["dtype"])

    @cached_property
    def features_mirror(self) -> np.ndarray:
        """
        Raises:
            UserError: features that were given without those of the mirror images.
        """
        if not self.has_mirror:
            raise UserError(
                f"--mirror-instances: the features in {self.folder} were given without those of the mirror images; add "
                "features_mirror to the .npz, or leave the flag out"
            )
        return self._array(MIRROR, self.h_dim, self.manifest["dtype"])

    @cached_property
    def neighbours(self) -> np.ndarray:
        return self._array(NEIGHBOURS, self.k, "int32")

    @cached_property
    def radii(self) -> np.ndarray:
        return self._array(RADII, self.k, "float32")

    @property
    def has_mirror(self) -> bool:
        return MIRROR in self.manifest["checksums"]

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
        ids, _, _ = self.neighbours, self.radii, self.features
        if self.has_mirror:
            _ = self.features_mirror
        some = np.linspace(0, num - 1, min(num, LOOKED_AT)).astype(np.int64)
        if not (np.abs(np.linalg.norm(self.features[some].astype(np.float64), axis=1) - 1) < 0.01).all():
            raise UserError(
                f"{self.folder / FEATURES} holds rows that are not of unit length; delete {self.folder} and it is made "
                "again"
            )
        if ids.min() < 0 or ids.max() >= num or (ids == np.arange(num)[:, None]).any():
            raise UserError(
                f"{self.folder}/neighbours.npy names images that are not there, or an image as its own neighbour; "
                f"delete {self.folder} and it is made again"
            )
        return self

    def verify(self) -> None:
        """Read everything and compare it with the checksums of the manifest.

        Raises:
            UserError: an array whose content has changed since it was written.
        """
        arrays = {FEATURES: self.features, NEIGHBOURS: self.neighbours, RADII: self.radii}
        if self.has_mirror:
            arrays[MIRROR] = self.features_mirror
        for name, array in arrays.items():
            if array_checksum(array) != self.manifest["checksums"][name]:
                raise UserError(f"{self.folder / name} is damaged (checksum); delete {self.folder} and make it again")

    def _array(self, name: str, width: int, dtype: str) -> np.ndarray:
        expected = (int(self.manifest["num_images"]), width)
        file = self.folder / name
        try:
            array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise UserError(f"{file} is damaged; delete {self.folder} and it is made again") from None
        if array.shape != expected or array.dtype != dtype:
            raise UserError(
                f"{file} is {array.dtype} {list(array.shape)}, its manifest says {dtype} {list(expected)}; "
                f"delete {self.folder} and it is made again"
            )
        return array

    def __getstate__(self) -> dict[str, Any]:  # workers map the arrays themselves
        return {name: getattr(self, name) for name in ("folder", "manifest", "extractor_state")}


def default_folder(dataset: ImageFolderDataset) -> Path:
    """Beside the zip (`digits.instances`), or in the user's cache folder where that can't be written."""
    return companion(dataset.path, f"{dataset.subset_tag}.instances")


def open_store(folder: Path, dataset: ImageFolderDataset) -> InstanceStore:
    """The store in `folder`, checked against the data set by file name and content.

    Raises:
        UserError: not a store, another format, or made from other files; the first that differs is named.
    """
    manifest = read_manifest(folder)
    try:
        lines = (folder / FILES).read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise UserError(f"instance store {folder} can't be read ({error}); delete it and it is made again") from None
    remedy = f"it was made from other data; delete {folder} and it is made again"
    for row, name in enumerate(dataset.names):
        stored_crc, _, stored_name = lines[row].partition(" ") if row < len(lines) else ("", "", "")
        if stored_name != one_line(name):
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


def one_line(name: str) -> str:
    """A file name as a line of files.txt."""
    return name.replace("\\", "\\\\").replace("\n", "\\n")


def write_files(folder: Path, dataset: ImageFolderDataset) -> None:
    """Write files.txt: what the rows of a store belong to."""
    lines = (
        f"{checksum:08x} {one_line(name)}\n" for checksum, name in zip(dataset.checksums, dataset.names, strict=True)
    )
    (folder / FILES).write_bytes("".join(lines).encode("utf-8", "surrogateescape"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a store.

    Raises:
        UserError: missing, damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        if found == FORMAT:
            _ = int(manifest["k"]), int(manifest["num_images"]), manifest["extractor"]["h_dim"], manifest["dtype"]
            _ = manifest["checksums"][FEATURES], manifest["extractor"]["name"]
            _ = manifest["neighbours"]["method"], manifest["neighbours"]["asked"]
    except (OSError, ValueError, TypeError, KeyError):
        if path.exists():
            raise UserError(f"{path} is damaged; delete {folder} and it is made again") from None
        raise UserError(f"{folder} is no instance store: it has no {MANIFEST}; name another --instances=DIR") from None
    if found != FORMAT:
        raise UserError(
            f"instance store {folder} has format {found}; this version reads {FORMAT}. Delete it and it is made again"
        )
    return manifest


def read_extractor_state(folder: Path) -> dict[str, torch.Tensor]:
    """Fitted tensors of the extractor that made a store; {} where it has none."""
    file = folder / EXTRACTOR_STATE
    if not file.exists():
        return {}
    try:
        return safetensors.torch.load_file(file)
    except (OSError, SafetensorError):
        raise UserError(f"{file} is damaged; delete {folder} and it is made again") from None
