"""Whole networks in 16 bits where that is safe, by torch's autocast; for float16 with a scale of the loss."""

from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST, LARGEST, PATIENCE = 2.0**14, 2.0**24, 1000  # of the scale; good steps in a row until it is tried twice as large


class LossScale:
    """Keeps gradients above the smallest float16: losses are multiplied by it, gradients divided.

    Halved after a step whose gradients were not finite, which the guard does not take, and doubled after `PATIENCE`
    good ones (Micikevicius et al., arXiv 1710.03740, section 3.2). Nothing is read from the device.
    """

    def __init__(self) -> None:
        self.value, self.good_steps = torch.tensor(FIRST), torch.tensor(0.0)

    def to(self, device: torch.device) -> "LossScale":
        self.value, self.good_steps = self.value.to(device), self.good_steps.to(device)
        return self

    def update(self, found: torch.Tensor) -> None:
        """Be told whether a step was bad: float32 [], 1 or 0."""
        good = (self.good_steps + 1) * (1 - found)
        grow = (good >= PATIENCE).float()
        self.value = (self.value * torch.where(found > 0, 0.5, 1.0) * (1 + grow)).clamp(1.0, LARGEST)
        self.good_steps = good * (1 - grow)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.good_steps = state["value"].clone(), state["good_steps"].clone()


class Precision:
    """In what a system computes.

    Args:
        name: 'auto' and 'fp32': as the networks say, float32 unless they have layers of their own in float16; 'bf16',
            'fp16': by autocast, weights and gradients in float32.
    """

    def __init__(self, name: str = "auto") -> None:
        self.dtype = DTYPES.get(name)
        self.scale = LossScale() if name == "fp16" else None

    def autocast(self, device: torch.device) -> torch.autocast:
        """What terms are computed in."""
        return torch.autocast(device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)
