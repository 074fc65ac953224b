"""The index of a search on disk: arrays, and beside them what they were made from."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from torch_utils.files import array_checksum, atomic_write

FORMAT, NAME = 1, "index.json"
CHECKED_ROWS = 64  # of the features: enough to tell whether they are those an index was made of


@dataclass(frozen=True)
class Index:
    """Description (JSON) of a search and its arrays by name.

    On disk every array is NAME.npy, and index.json, written last, names their checksums: an index without it, with
    arrays of another make or of other features is none.
    """

    description: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def save(self, folder: Path, features: np.ndarray, k: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).unlink(missing_ok=True)
        checksums = {}
        for name, array in self.arrays.items():
            with atomic_write(folder / f"{name}.npy") as file:
                np.save(file, array)
            checksums[name] = f"{array_checksum(array):08x}"
        content = {
            "format": FORMAT,
            "features": _identity(features, k),
            "arrays": checksums,
            "description": self.description,
        }
        with atomic_write(folder / NAME) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path, features: np.ndarray, k: int) -> Self | None:
        """The index in a folder, its arrays mapped; None when there is none of these features and k, whole."""
        try:
            content = json.loads((folder / NAME).read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["features"] != _identity(features, k):
                return None
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in content["arrays"]}
            if {name: f"{array_checksum(array):08x}" for name, array in arrays.items()} != content["arrays"]:
                return None
            return cls(content["description"], arrays)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _identity(features: np.ndarray, k: int) -> dict[str, Any]:
    rows = np.unique(np.linspace(0, len(features) - 1, CHECKED_ROWS).astype(np.int64))
    return {
        "shape": list(features.shape),
        "dtype": str(features.dtype),
        "checksum": f"{zlib.crc32(features[rows].tobytes()):08x}",
        "k": k,
    }
