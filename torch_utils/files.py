"""Files that are either whole or not there."""

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


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


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that gets its name only when the block ends well. An older folder of that name is replaced."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        try:
            temporary.rename(path)  # where there is nothing, or an empty folder
        except OSError:
            if not path.is_dir():
                raise
            retired = path.with_name(temporary.name + ".old")  # an older one, or another process was quicker
            path.rename(retired)
            temporary.rename(path)
            shutil.rmtree(retired)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
