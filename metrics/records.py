"""A line of `metric-<name>.jsonl`: a value with all that it takes to compare it with another."""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics.evaluation import Outcome
from metrics.metric_names import Metric
from torch_utils.command_line import UserError


def versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for name in ("torchvision", "torch_fidelity", "timm"):  # there if a detector needed it
        if name in sys.modules:
            found[name.replace("_", "-")] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found


def record(metric: Metric, outcomes: Sequence[Outcome], seeds: Sequence[int], about: dict[str, Any]) -> dict[str, Any]:
    """The line for one metric.

    Args:
        outcomes: one per seed.
        about: what the caller knows: reference, detector, truncation, sampling, snapshot.

    Returns:
        JSON. `results` are means over the seeds; `standard_error` is that of the mean over seeds where there are
        several, else the metric's own, or null where it has none; `interval95` is Student's.
    """
    first = outcomes[0]
    results, errors, intervals = {}, {}, {}
    for name in first.values:
        values = [outcome.values[name] for outcome in outcomes]
        results[name], errors[name] = statistics.fmean(values), first.errors.get(name)
        if len(values) > 1:
            error = statistics.stdev(values) / math.sqrt(len(values))
            errors[name] = error
            reach = student(len(values) - 1) * error
            intervals[name] = [results[name] - reach, results[name] + reach]
    line: dict[str, Any] = {"metric": metric.name, "results": results, "standard_error": errors}
    if intervals:
        line["interval95"] = intervals
        line["each_seed"] = [outcome.values for outcome in outcomes]
    notes = list(dict.fromkeys(note for outcome in outcomes for note in outcome.notes))
    line |= {"num_real": first.num_real, "num_fake": first.num_fake, "seeds": list(seeds)}
    line |= about | {"notes": notes, "versions": versions(), "timestamp": round(time.time(), 1)}
    finite: dict[str, Any] = _finite(line)
    return finite


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # imported where repeats are asked for

    return float(stdtrit(freedom, 0.975))


def check_writable(folder: Path) -> None:
    """Refuse a place for records before there are any.

    Raises:
        UserError: neither the folder nor, where it is still to be made, what is above it can be written.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{folder}: metric-*.jsonl can't be written there; name another place with --out=DIR")


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append to a file of JSON lines; after a line that a crash cut short a new one begins.

    Raises:
        UserError: it can't be written.
    """
    text = json.dumps(line)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell() and not _ends_well(file):
                text = "\n" + text
            file.write((text + "\n").encode())
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}); name another place with --out=DIR") from None


def _ends_well(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
