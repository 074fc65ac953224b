"""Ctrl-C and SIGTERM ask a run to save and leave; so does its time limit."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """Within the block, the first SIGINT or SIGTERM is a request; the second one acts at once.

    Args:
        minutes: ask to stop after this long; None: never.
    """

    def __init__(self, minutes: float | None) -> None:
        self._deadline = None if minutes is None else time.monotonic() + minutes * 60
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, self._previous[number])

    @property
    def reason(self) -> str | None:
        """Why to stop now, or None."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "time limit"
        return None
