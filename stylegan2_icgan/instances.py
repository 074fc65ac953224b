"""Instances: features and neighbours stored beside a data set, and the data set that draws from them."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from stylegan2_icgan.features import Extractor, fit_extractor, restore_extractor
from stylegan2_icgan.neighbours import nearest_neighbours
from stylegan2_icgan.selection import kmeans_exemplars
from torch_utils.command_line import UserError
from torch_utils.files import atomic_folder
from training.condition import Condition, Exemplars, Sample, thumbnails
from training.dataset import Draws, ImageFolderDataset
from training.randomness import hashed, integers, permutation, uniform

FORMAT = 1
BATCH = 64  # images per call of the extractor


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

    @cached_property
    def features(self) -> np.ndarray:
        return self._array("features")

    @cached_property
    def features_mirror(self) -> np.ndarray:
        return self._array("features_mirror")

    @cached_property
    def neighbours(self) -> np.ndarray:
        return self._array("neighbours")

    @cached_property
    def radii(self) -> np.ndarray:
        return self._array("radii")

    @property
    def k(self) -> int:
        return int(self.manifest["k"])

    @property
    def h_dim(self) -> int:
        return int(self.manifest["extractor"]["h_dim"])

    @property
    def extractor_state(self) -> dict[str, torch.Tensor]:
        file = self.folder / "extractor.safetensors"
        return safetensors.torch.load_file(file) if file.exists() else {}

    def extractor(self, weights: Path | None = None, device: torch.device | None = None) -> Extractor:
        """The extractor that made this store."""
        return restore_extractor(
            self.manifest["extractor"], self.extractor_state, weights, device or torch.device("cpu")
        )

    def _array(self, name: str) -> np.ndarray:
        widths = {"features": self.h_dim, "features_mirror": self.h_dim, "neighbours": self.k, "radii": self.k}
        expected = (int(self.manifest["num_images"]), widths[name])
        file = self.folder / f"{name}.npy"
        try:
            array: np.ndarray = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{file} can't be read ({error}); delete {self.folder} and it is made again") from None
        if array.shape != expected:
            raise UserError(
                f"{file} is {list(array.shape)}, its manifest says {list(expected)}; delete {self.folder} and it is "
                "made again"
            )
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}  # workers map the arrays themselves


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
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        lines = (folder / "files.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"instance store {folder} can't be read ({error}); delete it and it is made again") from None
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"instance store {folder} has format {manifest.get('format')}; this version reads {FORMAT}. Delete it and "
            "it is made again"
        )
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
    return InstanceStore(folder, manifest)


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
    if not 1 <= k < len(dataset):
        raise UserError(
            f"--k={k}, but --data={dataset.path} has {len(dataset)} images; expected 1 <= k <= {len(dataset) - 1}, "
            "since an instance is not its own neighbour"
        )
    folder = folder or default_folder(dataset)
    device = device or torch.device("cpu")
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
        say(f"{folder.name} has {store.k} neighbours an instance; finding {k}")
        return _write_store(folder, dataset, k, store.extractor(weights, device), store, device, say)

    fitted = fit_extractor(extractor or "pca", dataset, weights, device)
    return _write_store(folder, dataset, k, fitted, None, device, say)


def _write_store(
    folder: Path,
    dataset: ImageFolderDataset,
    k: int,
    extractor: Extractor,
    features_from: InstanceStore | None,
    device: torch.device,
    say: Callable[[str], None],
) -> InstanceStore:
    """Write a whole store and give it its name at the end; features are taken from an older store when given."""
    try:
        with atomic_folder(folder) as temporary:
            if features_from is None:
                say(f"features of {len(dataset)} images by {extractor.description['name']}, {extractor.h_dim} wide")
                features, mirror = extract(dataset, extractor)
            else:
                features, mirror = np.array(features_from.features), np.array(features_from.features_mirror)
            say(f"{k} nearest neighbours of {len(dataset)} instances")
            ids, distances = nearest_neighbours(features, k)
            for name, array in [
                ("features", features),
                ("features_mirror", mirror),
                ("neighbours", ids),
                ("radii", distances),
            ]:
                np.save(temporary / f"{name}.npy", array)
            if extractor.state:
                state = {name: tensor.cpu().contiguous() for name, tensor in extractor.state.items()}
                safetensors.torch.save_file(state, temporary / "extractor.safetensors")
            files = "".join(f"{dataset.checksum(row):08x} {name}\n" for row, name in enumerate(dataset.names))
            (temporary / "files.txt").write_text(files, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "dataset": dataset.path.name,
                "num_images": len(dataset),
                "extractor": extractor.description,
                "k": k,
                "self_excluded": True,
                "metric": "cosine similarity; radii are Euclidean distances of unit vectors",
                "torch": torch.__version__,
            }
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"instance store {folder} can't be written ({error}); name another folder with --instances=DIR"
        ) from None
    return open_store(folder, dataset)


def extract(dataset: ImageFolderDataset, extractor: Extractor) -> tuple[np.ndarray, np.ndarray]:
    """Features of every image and of its mirror image, each float32 [N, h_dim].

    Raises:
        UserError: a feature that is not finite or has no length; its file is named.
    """
    features = np.empty((len(dataset), extractor.h_dim), dtype=np.float32)
    mirror = np.empty_like(features)
    for start in range(0, len(dataset), BATCH):
        rows = np.arange(start, min(start + BATCH, len(dataset)))
        images = dataset.images(rows)
        features[rows] = extractor(images).cpu().numpy()
        mirror[rows] = extractor(images.flip(3)).cpu().numpy()
    for array in (features, mirror):
        bad = np.flatnonzero(np.abs(np.linalg.norm(array, axis=1) - 1) > 1e-3)  # NaN compares as False below
        bad = np.union1d(bad, np.flatnonzero(~np.isfinite(array).all(axis=1)))
        if len(bad):
            raise UserError(
                f"--data={dataset.path}: the feature of {dataset.names[bad[0]]} has no direction (the extractor "
                "returned zero or non-finite values); remove the image or use another --extractor"
            )
    return features, mirror


# -- drawing ----------------------------------------------------------------------------------------------------------


class InstanceDataset:
    """IC-GAN's draws (section 3; ARCHITECTURE of this project, "IC-GAN semantics").

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
