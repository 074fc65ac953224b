"""Several processes that work on one thing, as torchrun or `launch.relaunch` start them; a single one needs none of it.

Every process is told its RANK, LOCAL_RANK and WORLD_SIZE. What is on a GPU travels by NCCL, everything else by
gloo, which needs no GPU.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

from torch_utils.command_line import UserError

MEET_WITHIN = timedelta(minutes=5)  # for all processes to have started, and for one of them in the midst of training
SAVED_WITHIN = timedelta(minutes=30)  # for what happens between two steps
LONGEST_WAIT = timedelta(days=7)  # for the slowest piece of work; torchrun ends the others when one process fails
LEAVE_WITHIN_SEC = 5.0  # after an error
ROLL_CALL_SEC = 3.0  # for the processes that are left to say so
Value = TypeVar("Value")
_brisk: torch.distributed.ProcessGroup | None = None  # everyone, for SAVED_WITHIN
_patient: torch.distributed.ProcessGroup | None = None  # everyone, with the longest limit


class Departed(UserError):
    """Another process has left in the midst of the work: nobody can go on. Says which, where that can be told.

    Args:
        message: what a user reads.
        last: rank of the first of those that are left.
    """

    def __init__(self, message: str, last: int) -> None:
        super().__init__(message)
        self.last = last


def rank() -> int:
    """Number of this process, 0 to `world_size() - 1`."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """Processes that work together; 1 outside `together`."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def local_rank() -> int:
    """Number of this process on its machine: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0")) if torch.distributed.is_initialized() else 0


def launched() -> tuple[int, int]:
    """Rank and number of the processes that torchrun has started, before they have met; (0, 1) without torchrun."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))


# -- Waiting for each other -------------------------------------------------------------------------------------------


def barrier(brisk: bool = False) -> None:
    """Wait until every process is here; `brisk`: for SAVED_WITHIN at most."""
    if torch.distributed.is_initialized():
        _with_all(lambda: torch.distributed.barrier(_brisk if brisk else _patient))


def broadcast(value: Value) -> Value:
    """What the first process has, for all of them: files may look different from elsewhere."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    _with_all(lambda: torch.distributed.broadcast_object_list(values, src=0, group=_patient))
    return values[0]


def first(work: Callable[[], Value]) -> Value:
    """Let the first process do `work` and give all of them its answer; a user's mistake is a mistake on all.

    Raises:
        UserError: as `work` does.
    """
    answer: tuple[Value | None, str | None] = (None, None)
    if rank() == 0:
        try:
            answer = work(), None
        except UserError as error:
            answer = None, str(error)
    value, mistake = broadcast(answer)
    if mistake is not None:
        raise UserError(mistake)
    return value  # type: ignore[return-value]


def gather(value: Value, brisk: bool = False) -> list[Value]:
    """What every process has, on all of them, in the order of their ranks; `brisk`: within SAVED_WITHIN."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    group = _brisk if brisk else _patient
    _with_all(lambda: torch.distributed.all_gather_object(values, value, group=group))
    return values


def _with_all(talk: Callable[[], Any]) -> None:
    """
    Raises:
        Departed: one of them is gone, or was silent for too long.
    """
    try:
        talk()
    except RuntimeError as error:
        raise _roll_call() from error


# -- Arithmetic -------------------------------------------------------------------------------------------------------


def total(tensor: torch.Tensor) -> None:
    """Sum a tensor over all processes, in place.

    Raises:
        Departed: one of them is gone, or was silent for `MEET_WITHIN`.
    """
    if world_size() > 1:
        _with_all(lambda: torch.distributed.all_reduce(tensor))


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Average tensors of one device over all processes, in place, as one message for each dtype.

    Raises:
        Departed: as for `total`.
    """
    if world_size() == 1:
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        some = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.detach().flatten() for tensor in some])
        total(flat)
        flat /= world_size()
        for tensor, mean in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.detach().copy_(mean.view_as(tensor))


def highest(number: int) -> int:
    """The largest of the numbers that the processes have.

    Raises:
        Departed: as for `total`.
    """
    if world_size() == 1:
        return number
    numbers = torch.zeros(world_size(), dtype=torch.int64)
    numbers[rank()] = number
    total(numbers)
    return int(numbers.max())


def _roll_call() -> Departed:
    """Who has left, as far as the others can tell."""
    count = world_size()
    try:
        store = _get_default_store()
        store.set(f"still here: {rank()}", "yes")
        time.sleep(ROLL_CALL_SEC)
        missing = [r for r in range(count) if not store.check([f"still here: {r}"])]
    except (RuntimeError, ValueError):
        return Departed("the process that the others meet at (rank 0, or its machine) has left", 1)
    if not missing:
        return Departed(f"one of the {count} processes did not answer in time", 0)
    left, ranks = sorted({*range(count)} - {*missing}), ", ".join(map(str, missing))
    return Departed(f"rank {ranks} of the {count} processes (0 to {count - 1}) has left", left[0])


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, chosen for everything that comes; other devices as they are.

    Raises:
        UserError: more processes on this machine than GPUs.
    """
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if local_rank() >= count:
        raise UserError(
            f"rank {rank()} has no GPU of its own: this machine has {count}; start at most {count} processes"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


# -- Beginning and end ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes of this run for the length of the block; nothing happens where there is one alone.

    After an error nobody is waited for: torchrun, or `relaunch`, sees this process fail and ends the others.

    Raises:
        UserError: the others did not come.
    """
    global _brisk, _patient
    number, count = launched()
    if count == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and torch.distributed.is_nccl_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=MEET_WITHIN)
        _brisk = torch.distributed.new_group(backend="gloo", timeout=SAVED_WITHIN)
        _patient = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:  # the latter: no MASTER_ADDR
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"rank {number} of {count} did not meet the others at {place} ({reason}); start all, with one address"
        ) from None
    if "STARTED_BY" in os.environ:
        threading.Thread(target=_leave_with, args=(int(os.environ["STARTED_BY"]),), daemon=True).start()
    try:
        yield
        barrier()
    finally:
        # Threads of the groups that outlive the interpreter abort it. Of a device that is stuck nobody is waited for.
        leaving = threading.Thread(target=torch.distributed.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(None if sys.exc_info()[0] is None else LEAVE_WITHIN_SEC)
        _brisk = _patient = None


def _leave_with(parent: int) -> None:
    """Save and leave when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(ROLL_CALL_SEC)
    os.kill(os.getpid(), signal.SIGTERM)
