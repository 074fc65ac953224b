"""Devices, memory and tables of modules."""

import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from torch_utils.command_line import UserError

CONTAINER = Path("/sys/fs/cgroup")  # limits of the control group, version 2


def pick_device(name: str) -> torch.device:
    """'auto' is the first of cuda, mps, cpu that is there.

    Raises:
        UserError: a device asked for by name that this machine does not have.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in there.items() if present))
    if not there[name]:
        present = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise UserError(
            f"--device={name}: PyTorch finds no such device here; there is {present} (or use --device=auto)"
        )
    return torch.device(name)


def keep_large_buffers() -> None:
    """Tell glibc not to give large freed blocks back to the kernel, once, at the start of a script.

    By default each result of some MiB is a fresh mmap, whose page faults cost more than the arithmetic on it.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            m_trim_threshold, m_mmap_threshold = -1, -3  # names in malloc.h
            mallopt(m_mmap_threshold, 1 << 30)
            mallopt(m_trim_threshold, 1 << 30)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a CUDA device; else in the memory of the machine, or of its container, if less."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        return max(min(free, limit - int((CONTAINER / "memory.current").read_text())), 0)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def follow(mean: torch.Tensor, moved: torch.Tensor) -> None:
    """Let a running mean be what it has moved to, but for elements that are not finite: one bad batch would stay."""
    mean.copy_(torch.where(moved.isfinite(), moved, mean))


def module_table(name: str, network: torch.nn.Module) -> list[str]:
    """Lines for a person: the children of a network down to two levels, with their parameters and buffers."""
    lines = [f"{name:<28}{'parameters':>12}{'buffers':>10}"]
    for path, module in network.named_modules():
        if path and path.count(".") < 2 and (path.count(".") == 1 or not list(module.children())):
            lines.append(f"  {path:<26}{_count(module.parameters()):>12,}{_count(module.buffers()):>10,}")
    lines.append(f"  {'total':<26}{_count(network.parameters()):>12,}{_count(network.buffers()):>10,}")
    return lines


def parameter_bytes(networks: Mapping[str, torch.nn.Module]) -> int:
    """Bytes of all parameters and buffers."""
    tensors = [t for network in networks.values() for t in [*network.parameters(), *network.buffers()]]
    return sum(t.numel() * t.element_size() for t in tensors)


def _count(tensors: object) -> int:
    return sum(t.numel() for t in tensors)  # type: ignore[attr-defined]
