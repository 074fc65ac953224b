"""Making an instance store: features of every image, then their neighbours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from stylegan2_icgan.features import Extractor, fit_extractor
from stylegan2_icgan.neighbours import nearest_neighbours
from stylegan2_icgan.store import FORMAT, MANIFEST, InstanceStore, default_folder, open_store
from torch_utils.command_line import UserError
from torch_utils.files import Countdown, atomic_folder
from training.dataset import ImageFolderDataset

BATCH = 64  # images per call of the extractor
LARGE_SHARE = 0.2  # of the data set: a neighbourhood beyond this is hardly one


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
