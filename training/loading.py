"""Which samples a run sees, as a function of its seed and position, and the loader that fetches them."""

import functools
from collections.abc import Iterator

import numpy as np
import torch

from training.condition import Sample
from training.dataset import Draws, SampleSource
from training.randomness import hashed, integers, permutation
from training.workers import in_order

_REAL, _FAKE = 1, 2  # streams of randomness


@functools.lru_cache(maxsize=2)
def _epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(size, seed, epoch)


def real_draws(size: int, seed: int, start: int, count: int) -> Draws:
    """The real samples at positions start .. start + count - 1 of a run: every epoch is a permutation of the data."""
    positions = np.arange(start, start + count)
    index = np.empty(count, dtype=np.int64)
    for epoch in np.unique(positions // size):
        here = positions // size == epoch
        index[here] = _epoch_order(size, seed, int(epoch))[positions[here] % size]
    return Draws(index, hashed(seed, _REAL, positions))


def fake_draws(size: int, seed: int, stream: int, start: int, count: int) -> Draws:
    """Draws for the conditions of fakes, uniform and independent of the real ones; `stream` tells the phases apart."""
    positions = np.arange(start, start + count)
    return Draws(integers(size, seed, _FAKE, stream, positions), hashed(seed, _FAKE, stream, positions, 1))


class _Batches(torch.utils.data.Sampler[Draws]):
    """Endless draws for the `rows` of batches of `batch` samples from position `start` on."""

    def __init__(self, size: int, seed: int, start: int, batch: int, rows: slice) -> None:
        self.size, self.seed, self.start, self.batch, self.rows = size, seed, start, batch, rows

    def __iter__(self) -> Iterator[Draws]:
        position = self.start + self.rows.start
        while True:
            yield real_draws(self.size, self.seed, position, self.rows.stop - self.rows.start)
            position += self.batch


def make_loader(
    source: SampleSource,
    seed: int,
    start: int,
    batch: int,
    workers: int = 0,
    pin_memory: bool = False,
    rows: slice | None = None,
) -> Iterator[Sample]:
    """Endless batches of real samples, beginning at position `start`; the same ones whatever `workers` is.

    Args:
        rows: which of the `batch` samples this process gets; None: all of them.
    """
    batches = _Batches(len(source), seed, start, batch, rows or slice(0, batch))
    samples = in_order(source.__getitem__, batches, workers, pin_memory)
    return map(_pinned, samples) if pin_memory and not workers else samples


def _pinned(sample: Sample) -> Sample:
    """The sample in pinned memory; what is on the training device stays there."""
    return Sample(*(field if field.is_cuda else field.pin_memory() for field in sample))
