"""Long work in pieces: a shard is a file that is whole or counts as not there, so that killed work goes on."""

import io
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torch_utils import distributed
from torch_utils.files import Countdown, atomic_write


class Job(Protocol):
    """Work in numbered shards. It can be sent to another process, and opens there what it needs."""

    folder: Path  # of its shards
    num_shards: int

    def __call__(self, shard: int) -> None:
        """Do one shard and write its file."""
        ...


SHARD_ROWS = 1024  # minutes of a CPU, seconds of a GPU

Engine = Callable[[Job, Sequence[int], Countdown], None]  # has the shards done, wherever; returns when all are


def shard_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.shard"


def write_shard(folder: Path, shard: int, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    """Write arrays one behind the other as .npy, and the CRC-32 of all of it behind them."""
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array, allow_pickle=False)
    content = buffer.getbuffer()
    with atomic_write(shard_file(folder, shard)) as file:
        file.write(content)
        file.write(zlib.crc32(content).to_bytes(4, "little"))


def read_shard(folder: Path, shard: int, num_arrays: int) -> list[np.ndarray[Any, Any]] | None:
    """The arrays of a shard; None when it is not there, or not as it was written."""
    try:
        content = shard_file(folder, shard).read_bytes()
    except FileNotFoundError:
        return None
    if len(content) < 4 or zlib.crc32(memoryview(content)[:-4]) != int.from_bytes(content[-4:], "little"):
        return None
    buffer = io.BytesIO(content)
    return [np.load(buffer, allow_pickle=False) for _ in range(num_arrays)]


def run_in_ranks(job: Job, shards: Sequence[int], progress: Countdown) -> None:
    """Have the shards done by the processes of this torchrun, or by this one alone; each takes every n-th."""
    mine = shards[distributed.rank() :: distributed.world_size()]
    for done, shard in enumerate(mine, start=1):
        job(shard)
        progress(min(done * distributed.world_size(), len(shards)))
    distributed.barrier()


def run_job(job: Job, engine: Engine, what: str, say: Callable[[str], None]) -> None:
    """Have all shards of a job done that are not there yet."""
    job.folder.mkdir(parents=True, exist_ok=True)
    there = {entry.name for entry in os.scandir(job.folder)}
    todo = [shard for shard in range(job.num_shards) if shard_file(job.folder, shard).name not in there]
    distributed.barrier()  # everyone has looked before anyone writes
    if todo and len(todo) < job.num_shards:
        say(f"{what}: {job.num_shards - len(todo)} of {job.num_shards} shards are there already, going on")
    engine(job, todo, Countdown(f"{what}: shards", len(todo), say))


def shard_arrays(job: Job, shard: int, num_arrays: int, say: Callable[[str], None]) -> list[np.ndarray[Any, Any]]:
    """The arrays of a finished shard; one that is damaged is done again."""
    arrays = read_shard(job.folder, shard, num_arrays)
    if arrays is None:
        say(f"{shard_file(job.folder, shard)} is damaged (checksum) or gone; it is made again")
        job(shard)
        arrays = read_shard(job.folder, shard, num_arrays)
    if arrays is None:
        raise OSError(f"{shard_file(job.folder, shard)} can't be read back as it was written: is the disk sound?")
    return arrays
