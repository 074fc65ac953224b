"""Which samples a run sees, as a function of its seed and position, and the loader that fetches them."""

import functools
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.condition import Sample
from training.dataset import Draws, SampleSource
from training.randomness import hashed, integers, permutation

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
    """Endless draws for batches of `batch` samples from position `start` on."""

    def __init__(self, size: int, seed: int, start: int, batch: int) -> None:
        self.size, self.seed, self.start, self.batch = size, seed, start, batch

    def __iter__(self) -> Iterator[Draws]:
        position = self.start
        while True:
            yield real_draws(self.size, self.seed, position, self.batch)
            position += self.batch


class _SourceAsDataset(Dataset[Sample]):
    """`DataLoader` wants its own base class; a whole batch of draws is one index to it."""

    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __getitem__(self, draws: Draws) -> Sample:
        return self.source[draws]


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM often reach the whole process group: the trainer saves, and still needs its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def make_loader(
    source: SampleSource, seed: int, start: int, batch: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Sample]:
    """Endless batches of real samples, beginning at position `start`; the same ones whatever `workers` is."""
    loader = DataLoader(
        _SourceAsDataset(source),
        sampler=_Batches(len(source), seed, start, batch),
        batch_size=None,  # a draw is a batch already
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_parent,
    )
    return iter(loader)
