"""Fakes that are kept, so that a discriminator is trained on older ones, too (Shrivastava et al., arXiv 1612.07828)."""

from typing import Any

import numpy as np
import torch

from torch_utils.distributed import rank, total, world_size
from training.randomness import integers, uniform

_SWAP, _SLOT = 51, 52  # streams of randomness


class FakePool:
    """The last `size` fakes that were let in.

    Fakes are numbered in the order in which they are shown. While there is room, each is kept and shown to the
    discriminator as it is. Later each is, with probability 1/2, kept in a random place, and the one that was there is
    shown in its stead. A step sees what was kept before it, and which fakes change places is a function of (seed,
    number): rounds, processes and interruptions change nothing.

    Args:
        size: 50 in CycleGAN (arXiv 1703.10593, section 4); 0: every fake is shown as it is.
        stream: tells pools of one run apart.
    """

    def __init__(self, size: int, stream: int) -> None:
        self.size, self.stream = size, stream
        self.images = torch.empty(0)  # float32 [kept, C, H, W]
        self.count = 0  # fakes shown in earlier steps
        self._seed = 0
        self._shown: list[tuple[int, torch.Tensor]] = []  # in this step: place in the batch, fakes

    def exchange(self, fakes: torch.Tensor, key: tuple[int, ...]) -> torch.Tensor:
        """What the discriminator is shown in place of a round's fakes, [N, C, H, W].

        Args:
            key: of the step: seed first, number of the round among those of all processes last; (): rounds are counted.
        """
        if self.size == 0:
            return fakes
        fakes, self.images = fakes.detach(), self.images.to(fakes.device)
        self._seed = key[0] if key else 0
        first = key[-1] * len(fakes) if key else sum(len(some) for _, some in self._shown)
        self._shown.append((first, fakes))
        swapped, slots = self._swaps(first, len(fakes))
        if not swapped:
            return fakes
        shown = fakes.clone()
        shown[swapped] = self.images[slots]
        return shown

    def settle(self) -> None:
        """End a step: keep what is to be kept of the fakes of all rounds and processes."""
        if not self._shown:
            return
        batch = self._gathered()
        if len(self.images) < self.size:
            room = batch[: self.size - len(self.images)]
            self.images = torch.cat([self.images, room]) if len(self.images) else room.clone()
        else:
            swapped, slots = self._swaps(0, len(batch))
            for fake, slot in zip(swapped, slots, strict=True):  # in order: of several for a slot the last one stays
                self.images[slot] = batch[fake]
        self.count += len(batch)
        self._shown = []

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["images"]) != min(state["count"], self.size):
            raise ValueError(f"{len(state['images'])} images of {state['count']} in a pool of {self.size}")
        self.images, self.count, self._shown = state["images"].clone(), state["count"], []

    def _swaps(self, first: int, num: int) -> tuple[list[int], list[int]]:
        """Of `num` fakes from place `first` of the batch on: which change places (from 0), and with which slots."""
        if len(self.images) < self.size:
            return [], []
        numbers = self.count + first + np.arange(num)
        swapped = (uniform(self._seed, _SWAP, self.stream, numbers) < 0.5).nonzero()[0]
        return swapped.tolist(), integers(self.size, self._seed, _SLOT, self.stream, numbers[swapped]).tolist()

    def _gathered(self) -> torch.Tensor:
        """The fakes of the whole batch, in their order, on every process."""
        own = torch.cat([some for _, some in sorted(self._shown, key=lambda part: part[0])])
        if world_size() == 1:
            return own
        batch = own.new_zeros(world_size() * len(own), *own.shape[1:])
        batch[rank() * len(own) : (rank() + 1) * len(own)] = own
        total(batch)
        return batch
