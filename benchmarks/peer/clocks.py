"""Clocks and memory, with nothing but torch: a published checkout, too, is measured by these."""

import contextlib
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

MIB = 2**20


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call: by a GPU's own clock, else the CPU time of the process, which other processes add little to."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    began = time.process_time()
    work()
    return time.process_time() - began


def least(works: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Least seconds of each, in turns, after one call each that doesn't count.

    The least, since what else runs on a machine adds to a time and never takes from it. In turns, so that a minute in
    which the machine is slow is one for all of them.
    """
    for work in works:
        work()
    rounds = [[seconds(work, device) for work in works] for _ in range(repeats)]
    return [min(times) for times in zip(*rounds, strict=True)]


def wall_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, on the clock on the wall, until the device has done all of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak_mib(device: torch.device) -> float:
    """Most memory so far: what tensors held on a GPU since `reset_peak`, else the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent had when it started this process, too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB  # macOS counts bytes


def reset_peak(device: torch.device) -> None:
    """Begin to count anew; on the CPU only Linux can."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
