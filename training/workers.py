"""Work for helper processes: asked in order, answered in order; a user's mistake stays one line, and nobody is left."""

import atexit
import signal
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from torch_utils.command_line import UserError

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Failure:
    """An exception on its way home: `DataLoader` would send a UserError as forty lines of traceback."""

    def __init__(self, error: Exception) -> None:
        self.message = str(error)
        self.traceback = None if isinstance(error, UserError) else "".join(traceback.format_exception(error))

    def exception(self) -> Exception:
        if self.traceback is None:
            return UserError(self.message)
        return RuntimeError(f"a loader process failed:\n{self.traceback}")


class _Answers(Dataset[Any], Generic[Key, Value]):
    """`DataLoader` wants its own base class."""

    def __init__(self, function: Callable[[Key], Value]) -> None:
        self.function = function

    def __getitem__(self, key: Key) -> Value | _Failure:
        try:
            return self.function(key)
        except Exception as error:  # whatever it is, the process that asked raises it
            return _Failure(error)


class _Helped(Iterator[Value]):
    """The answers of helper processes, which end with it.

    They leave SIGTERM to their parent, so Python's own way of ending them would wait for ever. It comes to that when an
    exception that somebody keeps holds the iterator until the end: hence `close`, on any failure and at exit.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._answers: Iterator[Any] = iter(loader)
        atexit.register(_close, weakref.ref(self))

    def __next__(self) -> Value:
        answer: Value | _Failure
        try:
            answer = next(self._answers)
        except RuntimeError as error:  # a process was killed
            answer = _Failure(error)
        if isinstance(answer, _Failure):
            self.close()
            raise answer.exception()
        return answer

    def close(self) -> None:
        self._answers = iter(())


def _close(helped: weakref.ref[_Helped[Any]]) -> None:
    there = helped()
    if there is not None:
        there.close()


def in_order(
    function: Callable[[Key], Value], keys: Iterable[Key], workers: int, pin_memory: bool = False
) -> Iterator[Value]:
    """`map(function, keys)` by helper processes, a few calls ahead of what is asked for.

    Forked processes share what the function refers to, and start at once, not at the first answer; where processes are
    spawned, it is pickled.

    Args:
        workers: how many processes; 0: this one does the work when it is asked for, and `pin_memory` means nothing.
        pin_memory: tensors of the answers are in pinned memory.

    Raises:
        UserError: as the function does.
        RuntimeError: another error in a process, with its traceback, or a process that was killed.
    """
    if workers == 0:
        return map(function, keys)
    loader = DataLoader(
        _Answers(function),
        sampler=keys,
        batch_size=None,  # a key asks for a batch already
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4,
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),  # DataLoader draws a seed that nobody here uses: not from the global generator
    )
    return _Helped(loader)


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM often reach the whole process group: the trainer saves, and still needs its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
