"""Several processes of this machine, started and watched over by one that does nothing else."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

GRACE_SEC = 20.0  # for the others to say who has left, before they are ended
LOOK_EVERY_SEC = 0.05
# Processes share the cores. Of one that is gone the others say so themselves, without forty lines from inside torch.
DEFAULTS = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
Processes = Sequence["subprocess.Popen[bytes]"]


def relaunch(script: Path, processes: int) -> int:
    """Run this very command as so many processes, told what torchrun tells its own (RANK, WORLD_SIZE, ...).

    SIGINT and SIGTERM are passed on, and waited for, however long the processes take to save. Where one of them fails,
    the others are ended.

    Returns:
        the exit code of the first that failed, 128 + n if signal n ended it; 0 when all went well.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    shared = DEFAULTS | os.environ | meeting | {"STARTED_BY": str(os.getpid())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    sys.stdout.flush()
    started: list[subprocess.Popen[bytes]] = []
    with _passing_on_signals(started):
        for number in range(processes):
            # A session of its own: Ctrl-C is heard here alone, and passed on.
            command = [sys.executable, str(script.resolve()), *sys.argv[1:]]
            env = shared | {"RANK": str(number), "LOCAL_RANK": str(number)}
            started.append(subprocess.Popen(command, env=env, start_new_session=True))
        return _end_of(started)


def _end_of(started: Processes) -> int:
    """Wait until all are gone; the code of the first that failed."""
    code, deadline = 0, 0.0
    while None in (codes := [process.poll() for process in started]):
        if code == 0 and (code := _failure(codes)):
            deadline = time.monotonic() + GRACE_SEC
        if code and time.monotonic() > deadline:
            for process in started:
                process.kill()
        time.sleep(LOOK_EVERY_SEC)
    code = code or _failure(codes)
    return code if code >= 0 else 128 - code


def _failure(codes: Sequence[int | None]) -> int:
    """One that is neither 0 nor still to come; or 0."""
    return next((code for code in codes if code), 0)


@contextlib.contextmanager
def _passing_on_signals(started: Processes) -> Iterator[None]:
    def pass_on(number: int, frame: object) -> None:
        for process in started:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
