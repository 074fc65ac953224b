"""What benchmarks share beside their clocks, which are in benchmarks/peer: flags, facts, files."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from torch_utils import custom_ops
from torch_utils.command_line import UserError
from torch_utils.files import atomic_write

RESULTS = Path(__file__).resolve().parent / "results"
MODES = ("native", "ref")  # of --ops


def words(flag: str, given: str, allowed: Sequence[str]) -> list[str]:
    """'a,b' -> ['a', 'b'].

    Raises:
        UserError: a word that is not allowed.
    """
    for word in (found := given.split(",")):
        if word not in allowed:
            raise UserError(f"--{flag}={given}: {word!r} is not one of {', '.join(allowed)}")
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """What results depend on beside the code."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ops": custom_ops.get_mode(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return facts


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """In one piece, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
