"""`report("Loss/G/loss", tensor)` from anywhere; one `Collector` turns it into means, once a tick.

Values are summed where they are (no transfer, no synchronisation in a step) and read, of all processes together, only
when a tick ends. Values that are not finite are left out: one of them would hide all others. Of logits there is a
histogram, too.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_utils.distributed import gather, rank, total, world_size

LOGITS = "Loss/scores/"  # names that begin like this have a histogram
BINS, PER_UNIT = 64, 4  # equal bins of asinh(x), from -8 to 8: fine about 0, and 1,490 is still inside
EDGES = [math.sinh((i - BINS // 2) / PER_UNIT) for i in range(BINS + 1)]  # what lies beyond is in the last bins

_moments: dict[str, torch.Tensor] = {}  # name -> float64 (float32 on MPS): count, sum, sum of squares, then the bins


def _size(name: str) -> int:
    return 3 + BINS * name.startswith(LOGITS)


def add(name: str, moments: torch.Tensor) -> None:
    """Add count, sum, sum of squares, and bins if it has them, of values to the statistic `name`."""
    _moments[name] = _moments[name].to(moments) + moments if name in _moments else moments.clone()


_listener: Callable[[str, torch.Tensor], None] = add


@contextlib.contextmanager
def told_to(listener: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Within the block `listener` is given what is reported, in the form of `add`, and nothing is counted."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def report(name: str, value: torch.Tensor | float) -> None:
    """Add all elements of `value` to the statistic `name`."""
    x = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    x = x.flatten().to(torch.float32 if x.device.type == "mps" else torch.float64)
    finite = x.isfinite()
    x = torch.where(finite, x, 0)
    moments = torch.stack([finite.sum().to(x.dtype), x.sum(), x.square().sum()])
    if name.startswith(LOGITS):
        bins = (x.asinh() * PER_UNIT + BINS // 2).floor().clamp(0, BINS - 1).long()
        moments = torch.cat([moments, x.new_zeros(BINS).index_add_(0, bins, finite.to(x.dtype))])
    _listener(name, moments)


class Collector:
    """Reads what was reported since the last reading. It has a memory, so that an interrupted tick loses nothing."""

    def __init__(self) -> None:
        _moments.clear()

    def merge(self) -> None:
        """Move what all processes have to the first one; all of them call this."""
        if world_size() == 1:
            return
        names = sorted(set().union(*gather(list(_moments), brisk=True)))
        if not names:
            return
        sizes = [_size(name) for name in names]
        nothing = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        row = torch.cat([_moments.get(name, zero).cpu().double() for name, zero in zip(names, nothing, strict=True)])
        total(row)
        _moments.update(zip(names, row.split(sizes) if rank() == 0 else nothing, strict=True))

    def collect(self) -> dict[str, dict[str, Any]]:
        """{name: {num, mean, std}} since the last call, sorted by name; starts afresh. After `merge`: of all processes,
        for the first of them. Logits have a `histogram`, too: how many values are between each two EDGES."""
        result: dict[str, dict[str, Any]] = {}
        for name in sorted(_moments):
            num, total, squares, *bins = _moments[name].cpu().double().tolist()
            if num:
                mean = total / num
                result[name] = {"num": int(num), "mean": mean, "std": max(squares / num - mean**2, 0.0) ** 0.5}
                if bins:
                    result[name]["histogram"] = [int(count) for count in bins]
        _moments.clear()
        return result

    def state_dict(self) -> dict[str, Any]:
        return {name: moments.cpu() for name, moments in _moments.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _moments.clear()
        state = {name: row for name, row in state.items() if len(row) == _size(name)}  # older ones had no histograms
        _moments.update(state if rank() == 0 else {name: torch.zeros_like(row) for name, row in state.items()})
