"""What a loss term is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from training.condition import Condition

Listener = Callable[[torch.Tensor], None]


def nobody(logits: torch.Tensor) -> None:
    """Listens to nothing."""


def at_once(listener: Listener, tensor: torch.Tensor) -> None:
    """Tells."""
    listener(tensor)


@dataclass(frozen=True)
class Step:
    """Everything a loss term may look at, for one round (micro-batch) of one phase."""

    networks: Mapping[str, torch.nn.Module]
    real: torch.Tensor  # float32 [N, C, H, W] in [-1, 1]
    real_cond: Condition  # of `real`, N rows
    z: torch.Tensor  # float32 [N, z_dim] ~ N(0, 1)
    gen_cond: Condition  # for the fakes, N rows
    augment: Callable[[torch.Tensor], torch.Tensor]  # what the discriminator sees of an image, real or fake
    observe: Listener = nobody  # is told D(real) by the term that trains D on real images
    tell: Callable[[Listener, torch.Tensor], None] = (
        at_once  # how a term remembers: recorded passes tell at each replay
    )
    cur_nimg: int = 0  # images seen before this step: for what changes in the course of a run
    key: tuple[int, ...] = ()  # what the randomness of this round is a function of; (): torch's generator goes on

    @property
    def G(self) -> torch.nn.Module:
        return self.networks["G"]

    @property
    def D(self) -> torch.nn.Module:
        return self.networks["D"]


Term = Callable[[Step], torch.Tensor]  # a loss, float32 [N] (one value a sample) or shorter
