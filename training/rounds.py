"""The part of a step's batch that falls to this process, cut into rounds of what fits its device."""

from dataclasses import dataclass

import torch

from torch_utils.distributed import rank, world_size
from training.augment import Augmentation
from training.condition import Condition
from training.config import LoopOptions
from training.dataset import Draws, SampleSource
from training.loading import fake_draws
from training.randomness import seed_everything
from training.step import Step
from training.system import System


@dataclass(frozen=True)
class Share:
    """Consecutive rows of the batch, as many for each process.

    Args:
        rows: of the whole batch.
        round_size: rows at a time.
    """

    rows: slice
    round_size: int

    @property
    def first_round(self) -> int:
        """Number of this process's first round among those of all processes."""
        return int(self.rows.start) // self.round_size


def share_of(loop: LoopOptions) -> Share:
    """What this process does of a batch; the options have been checked to come out even."""
    size = loop.batch // world_size()
    return Share(slice(rank() * size, (rank() + 1) * size), loop.batch_gpu or size)


class Rounds:
    """Makes the rounds of a phase. What is random in one is a function of (seed, images seen, phase, round).

    Noise and draws are made for the whole batch and cut, so that any number of processes trains on the same ones.
    """

    def __init__(
        self, system: System, source: SampleSource, loop: LoopOptions, augment: Augmentation, device: torch.device
    ) -> None:
        self.system, self.source, self.loop, self.augment, self.device = system, source, loop, augment, device
        self.share = share_of(loop)

    def of(self, phase: int, real: torch.Tensor, real_cond: Condition, cur_nimg: int) -> list[Step]:
        """
        Args:
            phase: number in the table of the system.
            real, real_cond: this process's share.
            cur_nimg: images seen before this step.
        """
        loop, rows = self.loop, self.share.rows
        draws = fake_draws(len(self.source), loop.seed, phase, cur_nimg, loop.batch)
        gen_cond = self.source.conditions(Draws(draws.index[rows], draws.seed[rows])).to(self.device)
        seed_everything(loop.seed, cur_nimg, phase)
        z = torch.randn(loop.batch, self.system.networks["G"].z_dim, device=self.device)[rows]
        size, first = self.share.round_size, self.share.first_round
        parts = zip(*(values.split(size) for values in (real, real_cond, z, gen_cond)), strict=True)
        return [
            Step(
                self.system.networks,
                *part,
                augment=self.augment,
                observe=self.augment.observe,
                cur_nimg=cur_nimg,
                key=(loop.seed, cur_nimg, phase, first + number),
            )
            for number, part in enumerate(parts)
        ]
