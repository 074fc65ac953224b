"""The pool of earlier fakes: what it shows and keeps, whatever the rounds, processes and interruptions."""

import copy

import pytest
import torch

from training import fake_pool
from training.fake_pool import FakePool


def numbered(first: int, num: int) -> torch.Tensor:
    return torch.arange(first, first + num).float().view(-1, 1, 1, 1)


def shown_by(pool: FakePool, batches: int, rounds: int = 1, start: int = 0) -> list[list[float]]:
    """What a pool shows in steps of 4 fakes, whose values are their numbers."""
    result = []
    for step in range(start, start + batches):
        size = 4 // rounds
        parts = [pool.exchange(numbered(4 * step + r * size, size), (7, step, 1, r)) for r in range(rounds)]
        pool.settle()
        result.append(torch.cat(parts).flatten().tolist())
    return result


def test_pool_fills_then_swaps_half_of_the_fakes() -> None:
    pool = FakePool(6, 0)
    shown = shown_by(pool, 200)
    assert shown[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]  # while there is room, and in the step that fills it
    later = torch.tensor(shown[2:])
    own = numbered(8, 4 * 198).view(-1, 4)
    swapped = later != own
    assert 0.45 < swapped.float().mean() < 0.55
    assert (later <= own).all()  # of the past
    assert (own[swapped] - later[swapped]).max() > 40  # some stay long
    assert len(pool.images) == 6
    assert pool.images.max() > 4 * 190
    assert shown_by(FakePool(0, 0), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_pool_shows_a_kept_fake_and_keeps_the_new_one() -> None:
    pool = FakePool(1, 0)
    pool.exchange(numbered(0, 1), (7, 0, 1, 0))
    pool.settle()
    kept, swaps = 0.0, 0
    for number in range(1, 30):
        shown = float(pool.exchange(numbered(number, 1), (7, number, 1, 0)))
        pool.settle()
        assert shown in (number, kept)
        if shown != number:
            kept, swaps = number, swaps + 1
        assert pool.images.flatten().tolist() == [kept]
    assert 5 < swaps < 25


def test_pool_depends_on_rounds_and_interruptions_no_more_than_on_the_time_of_day() -> None:
    whole = shown_by(FakePool(6, 0), 20)
    assert shown_by(FakePool(6, 0), 20, rounds=4) == whole
    first, second = FakePool(6, 0), FakePool(6, 0)
    assert shown_by(first, 7) == whole[:7]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert shown_by(second, 13, rounds=2, start=7) == whole[7:]
    assert shown_by(FakePool(6, 1), 20) != whole  # pools of the two domains differ
    with pytest.raises(ValueError, match="in a pool of 5"):
        FakePool(5, 0).load_state_dict(first.state_dict())


def test_pool_is_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakePool(6, 0)
    alone = shown_by(whole, 12)
    monkeypatch.setattr(fake_pool, "world_size", lambda: 2)
    pools = [FakePool(6, 0), FakePool(6, 0)]
    for step in range(12):
        halves = [numbered(4 * step, 2), numbered(4 * step + 2, 2)]
        shown = [pool.exchange(halves[rank], (7, step, 1, rank)) for rank, pool in enumerate(pools)]
        assert torch.cat(shown).flatten().tolist() == alone[step]
        for rank, pool in enumerate(pools):
            other = torch.zeros(4, 1, 1, 1)
            other[2 * (1 - rank) : 2 * (1 - rank) + 2] = halves[1 - rank]
            monkeypatch.setattr(fake_pool, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(fake_pool, "total", lambda batch, other=other: batch.add_(other))
            pool.settle()
    assert all(torch.equal(pool.images, whole.images) for pool in pools)
