from pathlib import Path

import numpy as np
import pytest
import torch

from training.dataset import ImageFolderDataset, LabelledSource
from training.loading import fake_draws, make_loader, real_draws
from training.randomness import hashed, integers, permutation, seed_everything, uniform


def test_real_draws_show_every_image_once_an_epoch() -> None:
    index = real_draws(10, seed=0, start=0, count=30).index.reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in index.tolist())
    assert len({tuple(epoch) for epoch in index.tolist()}) == 3
    assert not np.array_equal(index, real_draws(10, seed=1, start=0, count=30).index.reshape(3, 10))


def test_draws_are_a_function_of_seed_and_position() -> None:
    for make in (
        lambda start, count: real_draws(7, 5, start, count),
        lambda start, count: fake_draws(7, 5, 1, start, count),
    ):
        whole, tail = make(0, 40), make(23, 17)
        assert np.array_equal(whole.index[23:], tail.index)
        assert np.array_equal(whole.seed[23:], tail.seed)


def test_fake_draws_are_uniform_and_differ_between_phases() -> None:
    counts = np.bincount(fake_draws(10, 0, 0, 0, 20_000).index, minlength=10)
    assert abs(counts - 2000).max() < 5 * (2000 * 0.9) ** 0.5
    assert not np.array_equal(fake_draws(10, 0, 0, 0, 50).index, fake_draws(10, 0, 1, 0, 50).index)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_yields_the_same_whatever_the_workers(patterns_zip: Path, workers: int) -> None:
    source = LabelledSource(ImageFolderDataset(patterns_zip, use_labels=True))
    alone, helped = (make_loader(source, seed=3, start=16, batch=8, workers=count) for count in (0, workers))
    for _ in range(7):
        for one, other in zip(next(alone), next(helped), strict=True):
            assert torch.equal(one, other)


def test_loader_continues_where_a_run_stopped(patterns_zip: Path) -> None:
    source = LabelledSource(ImageFolderDataset(patterns_zip))
    whole = make_loader(source, seed=0, start=0, batch=8)
    for _ in range(5):
        next(whole)
    assert torch.equal(next(whole).index, next(make_loader(source, seed=0, start=40, batch=8)).index)


def test_random_functions_are_spread_and_repeatable() -> None:
    values = uniform(7, np.arange(100_000))
    assert 0 <= values.min() < values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert set(integers(3, 1, np.arange(100)).tolist()) == {0, 1, 2}
    assert sorted(permutation(20, 1, 2).tolist()) == list(range(20))
    assert int(hashed(1, 2)[0]) != int(hashed(2, 1)[0])
    seed_everything(3, 4)
    first = torch.randn(5)
    seed_everything(3, 4)
    assert torch.equal(first, torch.randn(5))
    seed_everything(3, 5)
    assert not torch.equal(first, torch.randn(5))
