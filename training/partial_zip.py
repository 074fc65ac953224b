"""A data set in the making: `kill -9` in the middle, and the same command goes on where it was.

Beside the destination stand `.<name>.partial`, the zip without its end, and `.<name>.journal`, one JSON line for every
file of the source that is done. Images reach the disk before their lines do. Whoever goes on takes the lines as far as
the bytes agree with their checksums, and cuts off the rest.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from torch_utils.command_line import UserError
from torch_utils.files import atomic_write
from training.archive import ZipWriter

CHECKPOINT_SEC = 1.0  # at most so much work is lost; a checkpoint waits for the disk


class Finished(NamedTuple):
    """What became of one file of the source; a line of the journal."""

    name: str  # in the source
    source_crc: int | None  # of the bytes that were read; None: they could not be
    width: int = 0  # of the picture in the source, upright, pixels
    height: int = 0
    png_crc: int = 0
    png_size: int = 0  # bytes
    reason: str = ""  # why it was refused


class DatasetWriter:
    """Writes the images in order, then dataset.json; its bytes depend on nothing else."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._zip = ZipWriter(stream)
        self._num_images = 0

    def add(self, png: bytes) -> str:
        """Write one image; returns its name."""
        name = self._next_name()
        self._zip.write(name, png)
        self._num_images += 1
        return name

    def adopt(self, crc: int, size: int) -> bool:
        """Take over an image that an earlier process wrote, if it is whole."""
        whole = self._zip.adopt(self._next_name(), crc, size)
        self._num_images += whole
        return whole

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write dataset.json and the end of the zip."""
        self._zip.write("dataset.json", json.dumps(metadata, separators=(",", ":")).encode())
        self._zip.finish()

    def _next_name(self) -> str:
        return image_name(self._num_images)


def image_name(number: int) -> str:
    """The name in the zip of image `number`: a folder for every thousand."""
    return f"{number // 1000:05d}/img{number:08d}.png"


class WorkerKilled(UserError):
    """A process was killed from outside; what is done is kept."""


class PartialZip:
    """The destination while it is written, as a context manager. One process at a time: the others are refused.

    Left by an exception, it is kept for the same command to go on; but not when nothing is done yet, nor on a
    `UserError`, after which the same command would fail again.

    Args:
        dest: the zip to be.
        key: hash of all that decides its bytes. What an earlier process left under another key is thrown away.

    Attributes:
        thrown_away: there was such a thing.
        channels: what the earlier process had decided on, see `begin`; None when there was none.
        num_done: files of the source that are done.

    Raises:
        UserError: another process is at it.
        OSError: it can't be written.
    """

    def __init__(self, dest: Path, key: str) -> None:
        self.dest = dest
        self._path = dest.with_name(f".{dest.name}.partial")
        self._journal_path = dest.with_name(f".{dest.name}.journal")
        self._stream = _open_locked(self._path, self._journal_path, dest)
        self._journal = self._journal_path.open("r+b" if self._journal_path.exists() else "w+b")
        self._header = {"key": key}
        old_header: Any = next(self._lines(), ({}, 0))[0]
        self.thrown_away = old_header != {} and old_header != self._header
        if old_header != self._header:
            self._cut(0, 0)
            self._write_line(self._header)
        self._start = len(json.dumps(self._header)) + 1  # where the journal goes on behind its header
        marks = (line["channels"] for line, _ in self._lines() if isinstance(line, dict) and "channels" in line)
        self.channels: str | None = next(marks, None)
        self._journal.seek(0, os.SEEK_END)
        self._write_line({"pid": os.getpid()})
        self._pending: list[Finished] = []
        self._last_checkpoint = time.monotonic()
        self._has_work = self.channels is not None
        self.num_done, self._is_finished = 0, False
        self._writer = DatasetWriter(self._stream)

    def begin(self, channels: str) -> list[Finished]:
        """Start, or go on if the earlier process wrote with the same `channels`. Returns what is done."""
        self._stream.seek(0)
        self._writer = DatasetWriter(self._stream)
        self._pending.clear()
        done: list[Finished] = []
        end = self._start
        if channels == self.channels:
            for line, end_of_line in self._lines():
                if isinstance(line, list):
                    finished = Finished(*line)
                    if not finished.reason and not self._writer.adopt(finished.png_crc, finished.png_size):
                        break
                    done.append(finished)
                end = end_of_line
        self._cut(end, self._stream.tell())
        if channels != self.channels:
            self._write_line({"channels": channels})
        self._write_line({"pid": os.getpid()})
        self.channels, self.num_done, self._has_work = channels, len(done), bool(done)
        return done

    def add(self, finished: Finished, png: bytes) -> None:
        """Note the end of one file; `png` is empty when it was refused."""
        if not finished.reason:
            self._writer.add(png)
        self._pending.append(finished)
        self.num_done += 1
        self._has_work = True
        if time.monotonic() - self._last_checkpoint >= CHECKPOINT_SEC:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Bring what is done to the disk: first the images, then their lines."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        for finished in self._pending:
            self._journal.write(json.dumps(finished).encode() + b"\n")
        self._pending.clear()
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._last_checkpoint = time.monotonic()

    def finish(self, metadata: dict[str, Any], report: dict[str, Any]) -> None:
        """Write the end, and the report beside; then the zip gets its name."""
        self._writer.finish(metadata)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        with atomic_write(report_path(self.dest)) as stream:
            stream.write(json.dumps(report, indent=1).encode() + b"\n")
        self._path.replace(self.dest)
        self._journal_path.unlink()
        self._is_finished = True

    def __enter__(self) -> "PartialZip":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hopeless = isinstance(error, UserError) and not isinstance(error, WorkerKilled)
        if not self._is_finished and (hopeless or not self._has_work):
            self._path.unlink(missing_ok=True)
            self._journal_path.unlink(missing_ok=True)
        elif not self._is_finished:
            with contextlib.suppress(OSError):  # a full disk: the last checkpoint stands
                self.checkpoint()
        for stream in (self._journal, self._stream):
            with contextlib.suppress(OSError):
                stream.close()

    def _lines(self) -> Iterator[tuple[Any, int]]:
        """The lines of the journal and where each ends; up to the first that is torn."""
        self._journal.seek(0)
        end = 0
        for line in self._journal:
            end += len(line)
            try:
                content = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield content, end

    def _write_line(self, content: dict[str, Any]) -> None:
        self._journal.write(json.dumps(content).encode() + b"\n")
        self._journal.flush()

    def _cut(self, journal_end: int, stream_end: int) -> None:
        for file, end in ((self._journal, journal_end), (self._stream, stream_end)):
            file.seek(end)
            file.truncate()


def report_path(dest: Path) -> Path:
    return dest.with_name(f"{dest.stem}.convert-report.json")


def _open_locked(path: Path, journal_path: Path, dest: Path) -> IO[bytes]:
    """Open the partial zip for this process alone. The lock goes with the process, however it ends."""
    import fcntl  # not on Windows, where nothing else here is tried, either

    while True:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise UserError(
                f"--dest={dest} is being written by process {_last_pid(journal_path)}; "
                "wait for it, or give another name"
            ) from None
        except BaseException:
            stream.close()
            raise
        # Another process may have renamed the file to its final name between the two calls above.
        try:
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except FileNotFoundError:
            pass
        stream.close()


def _last_pid(journal_path: Path) -> str:
    try:
        lines = [json.loads(line) for line in journal_path.read_bytes().splitlines() if line.startswith(b'{"pid"')]
        return str(lines[-1]["pid"])
    except (OSError, ValueError, IndexError):
        return "of another command"
