"""The 1,000 instances that IC-GAN publishes for a data set: a dictionary of arrays, pickled into a .npy file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_icgan.extractors.extractor import normalise
from stylegan2_icgan.published_files.files import mapped
from stylegan2_icgan.published_files.numpy_arrays import ARRAYS, Array
from stylegan2_icgan.published_files.pickle_reader import PickleReader, Refusal
from torch_utils.files import sha256
from training.condition import Condition, Exemplars
from training.system import DataShape

FEATURES, LABELS, NAMES = "instance_features", "labels", "image_path"  # keys of the dictionary


def read_exemplars(path: Path, shape: DataShape) -> Exemplars:
    """Conditions for a model, without images, which the file does not have.

    Raises:
        Refusal: not such a file, other features than the model's, or no labels where it needs them.
    """
    arrays = _arrays(path)
    if FEATURES not in arrays:
        raise Refusal(f"has no {FEATURES!r}; expected IC-GAN's dictionary of instances, or rows [N, {shape.h_dim}]")
    features = arrays[FEATURES]
    if features.ndim != 2 or features.dtype.kind != "f" or features.shape[1] != shape.h_dim or not len(features):
        found = f"{features.dtype} {list(features.shape)}"
        raise Refusal(f"has features {found}; the model takes rows of width {shape.h_dim}")
    h = torch.from_numpy(features.astype(np.float32))
    lengths = h.norm(dim=1)
    if not bool(((lengths > 0) & lengths.isfinite()).all()):
        row = int((~((lengths > 0) & lengths.isfinite())).nonzero()[0])
        raise Refusal(f"has a feature without direction, row {row}")
    names = [str(name) for name in arrays[NAMES].tolist()] if NAMES in arrays else []
    if len(names) != len(h):
        names = [f"instance{row:05d}" for row in range(len(h))]
    description = {
        "name": "file",
        "h_dim": shape.h_dim,
        "file": path.name,
        "sha256": sha256(path),
        "rows": "by position",
        "mirror": False,
    }
    images = torch.zeros(0, shape.img_channels, 1, 1, dtype=torch.uint8)
    return Exemplars(Condition(_labels(arrays, shape.c_dim, len(h)), normalise(h)), images, names, description)


def _labels(arrays: Mapping[str, np.ndarray[Any, Any]], c_dim: int, num: int) -> torch.Tensor:
    """One-hot labels, float32 [num, c_dim]."""
    if not c_dim:
        return torch.zeros(num, 0)
    labels = arrays.get(LABELS, np.empty(0))
    if labels.dtype.kind == "O" and all(type(label) is int for label in labels.ravel()):
        labels = labels.astype(np.int64)
    if labels.shape != (num,) or labels.dtype.kind not in "iu":
        raise Refusal(f"has no {LABELS!r} for its {num:,} instances; the model takes a class beside the instance")
    if labels.min() < 0 or labels.max() >= c_dim:
        raise Refusal(f"has labels {labels.min()} to {labels.max()}; the model has classes 0 to {c_dim - 1}")
    return torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), c_dim).float()


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of the dictionary; of a plain array of numbers, that array as the features."""
    with mapped(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = read(file)
        except (ValueError, OSError, EOFError):
            raise Refusal("is no .npy file") from None
        stored = PickleReader(ARRAYS).read(file) if dtype.hasobject else None
    if stored is None:
        try:
            return {FEATURES: np.load(path, mmap_mode="r", allow_pickle=False)}
        except (ValueError, OSError, EOFError):
            raise Refusal("is damaged or cut short") from None
    content_of = stored.numpy.ravel().tolist() if isinstance(stored, Array) else []
    if len(content_of) != 1 or not isinstance(content_of[0], dict):
        raise Refusal("holds objects that are no dictionary of arrays")
    found: dict[str, np.ndarray[Any, Any]] = {}
    for key, value in content_of[0].items():
        if isinstance(value, Array):
            found[key] = value.numpy
        elif isinstance(value, list):
            found[key] = np.empty(len(value), dtype=object)
            for place, item in enumerate(value):
                found[key][place] = item
    return found
