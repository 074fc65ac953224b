"""Several processes that work on one thing, as torchrun starts them; a single process needs none of it.

torchrun tells every process its RANK, LOCAL_RANK and WORLD_SIZE. Here they only agree on when a piece of work is done,
over gloo, which needs no GPU.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

MEET_WITHIN = timedelta(minutes=5)  # for all processes to have started
LONGEST_WAIT = timedelta(days=7)  # for the slowest piece of work; torchrun ends the others when one process fails
Value = TypeVar("Value")
_patient: torch.distributed.ProcessGroup | None = None  # everyone, with the longer limit


def rank() -> int:
    """Number of this process, 0 to `world_size() - 1`."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """Processes that work together; 1 outside `together`."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def local_rank() -> int:
    """Number of this process on its machine: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0")) if torch.distributed.is_initialized() else 0


def barrier() -> None:
    """Wait until every process is here."""
    if torch.distributed.is_initialized():
        _quietly(lambda: torch.distributed.barrier(_patient))


def broadcast(value: Value) -> Value:
    """What the first process has, for all of them: files may look different from elsewhere."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    _quietly(lambda: torch.distributed.broadcast_object_list(values, src=0, group=_patient))
    return values[0]


def _quietly(wait: Callable[[], Any]) -> None:
    """Leave without a word when another process has: its own error is the one to read."""
    try:
        wait()
    except RuntimeError:
        raise SystemExit(1) from None


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes of this torchrun for the length of the block; nothing happens outside torchrun.

    After an error nobody is waited for: torchrun sees this process fail and ends the others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield
        return
    global _patient
    torch.distributed.init_process_group("gloo", timeout=MEET_WITHIN)
    _patient = torch.distributed.new_group(timeout=LONGEST_WAIT)
    yield
    barrier()
    torch.distributed.destroy_process_group()
    _patient = None
