"""Files that are either whole or not there."""

import contextlib
import hashlib
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file that gets its name only when the block ends well; on any error nothing is left behind.

    The bytes are on the disk (fsync) before the rename, so a power cut leaves either the old file or the new one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_folder(temporary: Path, path: Path) -> None:
    """Give a finished folder its name; an older folder of that name is replaced.

    Its files are on the disk (fsync) before the rename.
    """
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    try:
        temporary.rename(path)  # where there is nothing, or an empty folder
    except OSError:
        if not path.is_dir():
            raise
        retired = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.old")
        path.rename(retired)
        temporary.rename(path)
        shutil.rmtree(retired)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_checksum(array: np.ndarray[Any, Any], block: int = 1 << 24) -> int:
    """CRC-32 of an array's elements, read in blocks of so many bytes: it may be larger than the memory."""
    rows = max(block // max(array[:1].nbytes, 1), 1)
    checksum = 0
    for start in range(0, len(array), rows):
        checksum = zlib.crc32(np.ascontiguousarray(array[start : start + rows]).data, checksum)
    return checksum


def companion(data: Path, ending: str) -> Path:
    """Where what is derived from `data` is kept: beside it, or in the user's cache folder where that can't be written.

    Args:
        data: a file or folder, `photos.zip`.
        ending: what tells the companion apart, `.instances` -> `photos.instances`.
    """
    path = data.resolve()
    stem = path.name if path.is_dir() else path.stem  # the folders v1.0 and v1.1 are two data sets
    beside = path.with_name(stem + ending)
    if beside.exists() or os.access(beside.parent, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    tag = hashlib.sha256(str(path).encode()).hexdigest()[:16]  # other folders may hold data of the same name
    return cache / "stylegan2_icgan" / f"{stem}-{tag}{ending}"


class Countdown:
    """Says how far a long piece of work is, every ten seconds, with an estimate of what is left."""

    EVERY_SEC = 10.0

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self.what, self.total, self.say = what, total, say
        self.start = self.last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last >= self.EVERY_SEC and done < self.total:
            left = (now - self.start) * (self.total - done) / done
            self.say(f"{self.what}: {done:,} of {self.total:,}, {format_time(left)} left")
            self.last = now


def format_time(seconds: float) -> str:
    """'45s', '2m 05s', '3h 07m', '2d 04h': the two largest units."""
    total = max(round(seconds), 0)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h {total // 60 % 60:02d}m"
    return f"{total // 86400}d {total // 3600 % 24:02d}h"
