"""`report("Loss/G/loss", tensor)` from anywhere; one `Collector` turns it into means, once a tick.

Values are summed where they are (no transfer, no synchronisation in a step) and read, of all processes together, only
when a tick ends. Values that are not finite are left out: one of them would hide all others.
"""

from typing import Any

import torch

from torch_utils.distributed import gather, rank, total, world_size

_moments: dict[str, torch.Tensor] = {}  # name -> float64 (float32 on MPS) [3]: count, sum, sum of squares


def report(name: str, value: torch.Tensor | float) -> None:
    """Add all elements of `value` to the statistic `name`."""
    x = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    x = x.flatten().to(torch.float32 if x.device.type == "mps" else torch.float64)
    finite = x.isfinite()
    x = torch.where(finite, x, 0)
    moments = torch.stack([finite.sum().to(x.dtype), x.sum(), x.square().sum()])
    _moments[name] = _moments[name].to(moments) + moments if name in _moments else moments


class Collector:
    """Reads what was reported since the last reading. It has a memory, so that an interrupted tick loses nothing."""

    def __init__(self) -> None:
        _moments.clear()

    def merge(self) -> None:
        """Move what all processes have to the first one; all of them call this."""
        if world_size() == 1:
            return
        names = sorted(set().union(*gather(list(_moments))))
        nothing = torch.zeros(3, dtype=torch.float64)
        if not names:
            return
        table = torch.stack([_moments.get(name, nothing).double().cpu() for name in names])
        total(table)
        rows = table if rank() == 0 else torch.zeros_like(table)
        _moments.update(zip(names, rows, strict=True))

    def collect(self) -> dict[str, dict[str, float]]:
        """{name: {num, mean, std}} since the last call, sorted by name; starts afresh. After `merge`: of all processes,
        for the first of them."""
        result = {}
        for name in sorted(_moments):
            num, total, squares = _moments[name].double().cpu().tolist()
            if num:
                mean = total / num
                result[name] = {"num": int(num), "mean": mean, "std": max(squares / num - mean**2, 0.0) ** 0.5}
        _moments.clear()
        return result

    def state_dict(self) -> dict[str, Any]:
        return {name: moments.cpu() for name, moments in _moments.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _moments.clear()
        _moments.update(state if rank() == 0 else {name: torch.zeros_like(row) for name, row in state.items()})
