"""A foreign file as bytes."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stylegan2_icgan.published_files.pickle_reader import Refusal

LARGEST = 4 << 30  # bytes; the largest published networks have a quarter of that


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The content of a file, read when it is looked at, and never beyond its end.

    Raises:
        Refusal: it is missing, empty, or larger than any published one.
    """
    if not path.is_file():
        raise Refusal("is not a file" if path.exists() else "does not exist")
    size = path.stat().st_size
    if not 0 < size <= LARGEST:
        raise Refusal(f"has {size:,} bytes; expected 1 to {LARGEST:,}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content
