"""Decoded images kept where they are fetched fastest: in memory, on the training device, or in a file."""

import functools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from torch_utils.command_line import UserError
from torch_utils.files import Countdown, atomic_write, companion
from training.workers import in_order

FORMAT = 1  # of the file of decoded images
BLOCK_BYTES = 1 << 20  # decoded at a time: small enough for the shared memory of a container (64 MiB as a rule)
PATIENCE_SEC = 5.0  # work that takes longer gets helper processes
MAX_HELPERS = 16

Say = Callable[[str], None]


class Images(Protocol):
    """What is asked of a data set whose images are to be kept decoded."""

    path: Path

    def __len__(self) -> int: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def subset_tag(self) -> str: ...
    def fingerprint(self) -> str: ...
    def decode_images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray: ...


class Decoded:
    """All images of a data set, decoded: uint8 [N, C, H, W].

    Forked workers share the memory, since nobody writes to it. It is never sent to a process: pickled, a file is
    mapped again by its name, and what is in memory is not there (`ImageFolderDataset` then reads the files).

    Args:
        pixels: an array, or a tensor on the device that trains.
        file: the file that `pixels` is a map of.
    """

    def __init__(self, pixels: np.ndarray | torch.Tensor, file: Path | None = None) -> None:
        self.pixels, self.file = pixels, file

    @property
    def device(self) -> torch.device:
        """Where `take` leaves the images."""
        return self.pixels.device if isinstance(self.pixels, torch.Tensor) else torch.device("cpu")

    def take(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """A new uint8 tensor [n, C, H, W] of the images asked for, on `device`."""
        if isinstance(self.pixels, torch.Tensor):
            rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
            return self.pixels.index_select(0, rows.to(self.pixels.device, non_blocking=True))
        return torch.from_numpy(np.take(self.pixels, indices, axis=0))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is None:
            raise TypeError("decoded images in memory are not sent to other processes")
        return _reopen, (self.file,)


def in_memory(images: Images, say: Say) -> Decoded:
    """Decode every image into memory."""
    pixels = np.empty((len(images), *images.image_shape), dtype=np.uint8)
    for rows, block in _blocks(images, say):
        pixels[rows] = block
    return Decoded(pixels)


def on_device(images: Images, device: torch.device, say: Say) -> Decoded:
    """Decode every image into the memory of a device."""
    pixels = torch.empty((len(images), *images.image_shape), dtype=torch.uint8, device=device)
    for rows, block in _blocks(images, say):
        pixels[rows].copy_(torch.from_numpy(block))
    return Decoded(pixels)


def on_disk(images: Images, say: Say) -> Decoded:
    """Map the file of decoded images; make it first where it is missing or was made from other images.

    Raises:
        UserError: the file can't be written; nothing half-written is left.
    """
    existing = find_on_disk(images)
    if existing is not None:
        return existing
    file = decoded_file(images)
    size = len(images) * int(np.prod(images.image_shape))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(file.parent).free
        if free < size:
            raise OSError(0, f"{free / 2**30:.1f} GiB are free")
        _remove_leftovers(file)
        with atomic_write(file) as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), *images.image_shape)}
            np.lib.format.write_array_header_1_0(out, header)
            for _, block in _blocks(images, say):
                out.write(block.data)
            out.write(_seal(images))
    except OSError as error:
        raise UserError(
            f"--cache=disk: {file} can't be written ({error.strerror or error}), it takes {size / 2**30:.1f} GiB; make "
            "room, or use --cache=none"
        ) from None
    return _reopen(file)


def find_on_disk(images: Images) -> Decoded | None:
    """The file of decoded images that `on_disk` made earlier, or None: missing, cut short, or of other images."""
    file, seal = decoded_file(images), _seal(images)
    try:
        pixels = _map(file)
        with file.open("rb") as content:
            content.seek(-len(seal), os.SEEK_END)
            sealed = content.read() == seal
        whole = file.stat().st_size == pixels.offset + pixels.nbytes + len(seal)
    except (OSError, ValueError, EOFError):
        return None
    fits = pixels.dtype == np.uint8 and pixels.shape == (len(images), *images.image_shape)
    return Decoded(np.asarray(pixels), file) if sealed and whole and fits else None


def decoded_file(images: Images) -> Path:
    """Where decoded images are kept: `photos.decoded.npy` beside `photos.zip`; a subset has a file of its own."""
    return companion(images.path, f"{images.subset_tag}.decoded.npy")


def _remove_leftovers(file: Path) -> None:
    """Remove what `atomic_write` of processes that were killed left of `file`, by the process number in the name."""
    pattern = re.compile(rf"\.{re.escape(file.name)}\.(\d{{1,9}})-[0-9a-f]+\.tmp")
    for entry in list(file.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match and not _is_running(int(match[1])):
            entry.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _seal(images: Images) -> bytes:
    """The last bytes of the file: which images it holds. `np.load` does not mind them."""
    return f"\n{json.dumps({'format': FORMAT, 'fingerprint': images.fingerprint()})}\n".encode()


def _map(file: Path) -> np.memmap:
    pixels: np.memmap = np.load(file, mmap_mode="r", allow_pickle=False)
    return pixels


def _reopen(file: Path) -> Decoded:
    return Decoded(np.asarray(_map(file)), file)


def _blocks(images: Images, say: Say) -> Iterator[tuple[slice, np.ndarray]]:
    """All images in order, decoded, a block at a time: the rows, and uint8 [n, C, H, W].

    Helpers are processes because pyspng keeps Python's lock while it decodes: two threads decode no more than one.
    """
    num, size = len(images), max(BLOCK_BYTES // int(np.prod(images.image_shape)), 1)
    blocks = [slice(start, min(start + size, num)) for start in range(0, num, size)]
    progress, start = Countdown("decoding", num, say), time.monotonic()
    decode = functools.partial(_decode, images)
    yield blocks[0], decode(blocks[0]).numpy()
    expected_sec = (time.monotonic() - start) * (len(blocks) - 1)
    workers = min(_cores(), MAX_HELPERS) if expected_sec > PATIENCE_SEC else 0
    for rows, block in zip(blocks[1:], in_order(decode, blocks[1:], workers if workers > 1 else 0), strict=True):
        yield rows, block.numpy()
        progress(rows.stop)


def _decode(images: Images, rows: slice) -> torch.Tensor:
    """A tensor, since those come from helpers through shared memory."""
    return torch.from_numpy(images.decode_images(np.arange(rows.start, rows.stop)))


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
