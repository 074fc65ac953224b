"""A lock file that dies with its process."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def hold(path: Path, say: Callable[[str], None], patience_sec: float = 0) -> Iterator[None]:
    """Hold the lock `path` for the length of the block; while another process has it, wait, and say so once.

    The kernel frees the lock of a killed process, so none is ever stale. On a file system without locks nothing is
    held.

    Args:
        path: the lock file; it holds the owner's process id and goes away with the lock.
        say: is given one line with the owner and how long it has been at work.
        patience_sec: wait this long before saying anything.
    """
    while True:
        file = path.open("a+")
        try:
            _acquire(file, path, say, patience_sec)
        except OSError:  # no locks on this file system
            break
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()  # its holder took the file away; there may be a new one
    try:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _acquire(file: IO[str], path: Path, say: Callable[[str], None], patience_sec: float) -> None:
    began = time.monotonic()
    while True:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.monotonic() - began >= patience_sec:
            break
        time.sleep(0.05)
    file.seek(0)
    owner, age_sec = file.read().strip() or "unknown", max(time.time() - os.fstat(file.fileno()).st_mtime, 0)
    say(f"{path}: process {owner} has been at work there for {age_sec:.0f} s; waiting for it")
    fcntl.flock(file, fcntl.LOCK_EX)
