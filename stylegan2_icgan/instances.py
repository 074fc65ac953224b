"""Instances: features and neighbours stored beside a data set, and the data set that draws from them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from stylegan2_icgan.features import Extractor, fit_extractor, restore_extractor
from stylegan2_icgan.neighbours import nearest_neighbours
from stylegan2_icgan.selection import kmeans_exemplars
from torch_utils.command_line import UserError
from torch_utils.files import Countdown, atomic_folder
from training.condition import Condition, Exemplars, Sample, thumbnails
from training.dataset import Draws, ImageFolderDataset
from training.randomness import hashed, integers, permutation, uniform

FORMAT, MANIFEST = 1, "manifest.json"
BATCH = 64  # images per call of the extractor
LARGE_SHARE = 0.2  # of the data set: a neighbourhood beyond this is hardly one


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


# -- opening and making ----------------------------------------------------------------------------------------------


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


def ensure_store(
    dataset: ImageFolderDataset,
    k: int,
    extractor: str | None = None,
    weights: Path | None = None,
    folder: Path | None = None,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> InstanceStore:
    """Open the instance store of a data set; make it, or more neighbours, when they are missing.

    Args:
        k: neighbours needed; a store with more of them serves as it is.
        extractor: name in the table of extractors; None: what the store was made with, `pca` for a new one.
        weights: local file of weights for the extractor.
        folder: where; None: beside the data set.
        say: called with one line for every piece of work begun.

    Raises:
        UserError: k too large, a store of other data or of another extractor, a folder that can't be written.
    """
    if len(dataset) < 2:
        raise UserError(f"--data={dataset.path} has one image; instances need others as neighbours")
    if not 1 <= k < len(dataset):
        raise UserError(
            f"--k={k}, but {len(dataset)} images of --data={dataset.path} are used; expected 1 <= k <= "
            f"{len(dataset) - 1}, since an instance is not its own neighbour"
        )
    if k > len(dataset) * LARGE_SHARE:
        say(
            f"note: --k={k} neighbours of {len(dataset)} images are a large part of all; a smaller --k tells more apart"
        )
    folder = folder or default_folder(dataset)
    device = device or torch.device("cpu")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--instances={folder} is a file; expected a folder")
    if folder.exists() and any(folder.iterdir()):
        store = open_store(folder, dataset)
        stored = store.manifest["extractor"]["name"]
        if extractor is not None and extractor != stored:
            raise UserError(
                f"--extractor={extractor}, but the features in {folder} were made with {stored}; delete that folder, "
                "or name another with --instances=DIR"
            )
        if weights is not None:
            store.extractor(weights, device)  # refuses a file other than the one the store was made with
        if store.k >= k:
            return store
        say(f"{folder.name} has {store.k} neighbours an instance, {k} are asked for")
        return _write_store(folder, dataset, k, store, say)

    fitted = fit_extractor(extractor or "pca", dataset, weights, device)
    return _write_store(folder, dataset, k, fitted, say)


def _write_store(
    folder: Path, dataset: ImageFolderDataset, k: int, origin: Extractor | InstanceStore, say: Callable[[str], None]
) -> InstanceStore:
    """Write a whole store and give it its name at the end; its features come from an extractor or an older store."""
    try:
        with atomic_folder(folder) as temporary:
            if isinstance(origin, InstanceStore):
                description, state = origin.manifest["extractor"], origin.extractor_state
                for name in ("features", "features_mirror"):
                    shutil.copyfile(origin.folder / f"{name}.npy", temporary / f"{name}.npy")
            else:
                description = origin.description | {"images": dataset.conversion}
                state = {name: tensor.cpu().contiguous() for name, tensor in origin.state.items()}
                say(f"features of {len(dataset):,} images by {description['name']}, {origin.h_dim} wide")
                extract(dataset, origin, temporary, Countdown("features", len(dataset), say))
            say(f"{k} nearest neighbours of {len(dataset):,} instances")
            features = np.load(temporary / "features.npy", mmap_mode="r")
            ids, distances = nearest_neighbours(features, k, Countdown("neighbours", len(dataset), say))
            np.save(temporary / "neighbours.npy", ids)
            np.save(temporary / "radii.npy", distances)
            if state:
                safetensors.torch.save_file(state, temporary / "extractor.safetensors")
            files = "".join(f"{dataset.checksum(row):08x} {name}\n" for row, name in enumerate(dataset.names))
            (temporary / "files.txt").write_text(files, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "dataset": dataset.path.name,
                "num_images": len(dataset),
                "extractor": description,
                "k": k,
                "self_excluded": True,
                "metric": "cosine similarity; radii are Euclidean distances of unit vectors",
                "torch": torch.__version__,
            }
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"instance store {folder} can't be written ({error.strerror or 'no space left'}); make room, or name "
            "another folder with --instances=DIR"
        ) from None
    return open_store(folder, dataset)


def extract(
    dataset: ImageFolderDataset, extractor: Extractor, folder: Path, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Write features.npy and features_mirror.npy, float32 [N, h_dim], of every image and of its mirror image.

    Raises:
        UserError: a feature that is not finite or has no length; its file is named.
    """
    shape = (len(dataset), extractor.h_dim)
    features, mirror = (
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        for name in ("features", "features_mirror")
    )
    for start in range(0, len(dataset), BATCH):
        rows = np.arange(start, min(start + BATCH, len(dataset)))
        images = dataset.images(rows)
        for array, seen in ((features, images), (mirror, images.flip(3))):
            h = extractor(seen).cpu().numpy()
            bad = ~(np.abs(np.linalg.norm(h, axis=1) - 1) < 1e-3)  # NaN is bad, too
            if bad.any():
                name = dataset.names[rows[bad.argmax()]]
                raise UserError(
                    f"--data={dataset.path}: the feature of {name} has no direction (the extractor returned zero or "
                    "non-finite values); remove the image or use another --extractor"
                )
            array[rows] = h
        progress(start + len(rows))


# -- drawing ----------------------------------------------------------------------------------------------------------


class InstanceDataset:
    """IC-GAN's draws (section 3; docs/architecture.md, "IC-GAN semantics").

    Draw an instance i; h is the feature of i. Real: image and label of j, uniform over the k nearest neighbours of i, i
    itself left out. Fake: i afresh, h the feature of i, c the label of a neighbour of that same i. With
    `mirror_instances` (DA(i)) h is the feature of the flipped instance with probability 1/2, for real and fake alike.

    Args:
        dataset: the images.
        store: their instances.
        k: size of the neighbourhood, at most the store's.
        mirror_instances: DA(i).
    """

    def __init__(
        self, dataset: ImageFolderDataset, store: InstanceStore, k: int, mirror_instances: bool = False
    ) -> None:
        if not 1 <= k <= store.k:
            raise ValueError(f"k is {k}; expected 1 to {store.k}, the neighbours in the store")
        self.dataset, self.store, self.k, self.mirror_instances = dataset, store, k, mirror_instances
        self.name, self.c_dim, self.h_dim = dataset.name, dataset.c_dim, store.h_dim
        self.resolution, self.num_channels = dataset.resolution, dataset.num_channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draws: Draws) -> Sample:
        h, j = self._draw(draws)
        return Sample(self.dataset.images(j), self.dataset.labels(j), h, torch.from_numpy(j))

    def conditions(self, draws: Draws) -> Condition:
        h, j = self._draw(draws)
        return Condition(self.dataset.labels(j), h)

    def _draw(self, draws: Draws) -> tuple[torch.Tensor, np.ndarray]:
        """Features of the instances, float32 [N, h_dim], and one neighbour of each, int64 [N]."""
        i = draws.index
        j = np.asarray(self.store.neighbours[i, integers(self.k, draws.seed, 1)])
        h = np.array(self.store.features[i])
        if self.mirror_instances:
            flipped = uniform(draws.seed, 2) < 0.5
            h[flipped] = self.store.features_mirror[i[flipped]]
        return torch.from_numpy(h), j

    def showcase(self, rows: int, columns: int) -> tuple[Condition, torch.Tensor]:
        """Each row: an instance and its columns - 1 nearest neighbours."""
        chosen = permutation(len(self), 1)[np.arange(rows) % len(self)]
        neighbours = np.asarray(self.store.neighbours[chosen, : min(columns - 1, self.store.k)])
        shown = np.concatenate([chosen[:, None], neighbours], axis=1)
        return self._own_conditions(chosen), self.dataset.images(shown.reshape(-1)).unflatten(0, shown.shape)

    def exemplars(self, count: int) -> Exemplars:
        """Instances nearest to the centres of k-means on the features."""
        chosen = kmeans_exemplars(self.store.features, count)
        return Exemplars(
            self._own_conditions(chosen),
            thumbnails(self.dataset.images(chosen)),
            [self.dataset.names[i] for i in chosen],
            self.store.manifest["extractor"],
            self.store.extractor_state,
        )

    def _own_conditions(self, i: np.ndarray) -> Condition:
        return Condition(self.dataset.labels(i), torch.from_numpy(np.array(self.store.features[i])))
