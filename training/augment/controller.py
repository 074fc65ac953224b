"""The adaptive part of ADA: augment as much as the discriminator overfits (arXiv 2006.06676, section 3.2)."""

from typing import Any

import torch
from torch import Tensor

from torch_utils.distributed import rank, total
from training.augment.pipe import AugmentPipe


class AdaController:
    """Move p of a pipe so that r_t = E[sign D(real)], the share of overfitting, stays at a target.

    r_t is 0 where D can't tell real from fake and 1 where it is sure of every training image. Every `interval` steps p
    goes up by a fixed amount where r_t is above the target, down where it is below, and stays in [0, 1]: the paper
    clamps at 0 only, but above 1 nothing is left to augment more often, and p would take as long to come back. Nothing
    is read from the device.

    Args:
        pipe: whose p is moved.
        target: r_t to aim at, the paper's 0.6; None leaves p fixed and only measures r_t.
        interval: steps between two adjustments, the paper's 4.
        ada_kimg: thousands of images in which p can go from 0 to 1, the paper's 500.
    """

    def __init__(
        self,
        pipe: AugmentPipe,
        target: float | None = 0.6,
        interval: int = 4,
        ada_kimg: float = 500,
    ) -> None:
        if target is not None and not -1 <= target <= 1:
            raise ValueError(f"target: {target} is not a mean of signs, a number from -1 to 1.")
        if interval < 1 or ada_kimg <= 0:
            raise ValueError(f"interval {interval} and ada_kimg {ada_kimg}: expected at least 1 and more than 0.")
        self.pipe, self.target, self.interval, self.ada_kimg = pipe, target, interval, ada_kimg
        self.totals = torch.zeros(2)  # sum and number of signs since the last adjustment; float32, exact up to 2^24
        self.r_t = torch.zeros(())  # at the last adjustment
        self.num_steps, self.num_images = 0, 0  # since the last adjustment

    def observe(self, logits: Tensor) -> None:
        """Count the signs of D(real), any shape, where the training of D has them at hand."""
        signs = logits.detach().float().sign().sum()
        self.totals = self.totals.to(signs.device) + torch.stack([signs, torch.full_like(signs, logits.numel())])

    def step(self, batch: int) -> None:
        """End a step; every `interval`-th moves p, in all processes alike, by what all of them observed.

        Args:
            batch: images the step was trained on, over all processes.
        """
        self.num_steps, self.num_images = self.num_steps + 1, self.num_images + batch
        if self.num_steps < self.interval:
            return
        self.totals = self.totals.to(self.pipe.p.device)
        total(self.totals)
        signs, count = self.totals.unbind()
        self.r_t = signs / count.clamp(min=1)
        if self.target is not None:
            amount = self.num_images / (self.ada_kimg * 1000)
            direction = torch.where(count > 0, (self.r_t - self.target).sign(), 0)
            self.pipe.p.copy_((self.pipe.p + direction * amount).clamp(0, 1))
        self.totals, self.num_steps, self.num_images = torch.zeros_like(self.totals), 0, 0

    def merge(self) -> None:
        """Move what all processes have observed to the first one, so that its state is that of all."""
        total(self.totals)
        if rank() > 0:
            self.totals = torch.zeros_like(self.totals)

    def state_dict(self) -> dict[str, Any]:
        """Everything but p, which is in the state of the pipe."""
        return {
            "totals": self.totals,
            "r_t": self.r_t,
            "num_steps": self.num_steps,
            "num_images": self.num_images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.totals = state["totals"].clone() if rank() == 0 else torch.zeros_like(state["totals"])
        self.r_t = state["r_t"].clone()
        self.num_steps, self.num_images = state["num_steps"], state["num_images"]
