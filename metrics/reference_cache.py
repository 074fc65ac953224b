"""Features and statistics of reference images, kept under a key of what they are: content, detector, filter, subset."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from torch_utils.distributed import broadcast, rank
from torch_utils.files import atomic_write

FORMAT = 1
LARGEST = 1 << 30  # bytes: larger features are made again rather than kept


class ReferenceCache:
    """Tensors under keys, in memory and on disk. What can't be read is made again; what can't be written is not kept.

    Args:
        folder: None: nothing is kept on disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._here: dict[str, dict[str, Tensor]] = {}  # for the next seed and the next snapshot

    def __call__(self, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of `key`; from `make` when they are not there.

        Args:
            key: JSON; a `content` that is empty means that nothing is known to compare: never cached.
        """
        if not key.get("content"):
            return make()
        text = json.dumps(key | {"format": FORMAT}, sort_keys=True)
        if text not in self._here:
            self._here[text] = make() if self.folder is None else self._kept(self.folder, text, make)
        return self._here[text]

    def _kept(self, folder: Path, text: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
        tensors = _of_first_process(path)
        if tensors is None:
            tensors = {name: tensor.contiguous() for name, tensor in make().items()}
            if rank() == 0 and sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST:
                self._keep(path, tensors, text)
        return tensors

    def _keep(self, path: Path, tensors: dict[str, Tensor], text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(safetensors.torch.save(tensors, {"key": text}))
        except OSError:  # a full or read-only disk costs time the next time, nothing else
            return


def _of_first_process(path: Path) -> dict[str, Tensor] | None:
    """What the first process finds, on every process: else some would wait for the others to make what they have."""
    found: dict[str, Tensor] | None = None
    if rank() == 0:
        with contextlib.suppress(OSError, SafetensorError):
            found = safetensors.torch.load_file(path)
    return broadcast(found)


def default_cache_folder() -> Path:
    """In the user's cache folder (XDG_CACHE_HOME)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stylegan2_icgan" / "metrics"
