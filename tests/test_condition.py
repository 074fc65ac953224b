import pytest
import torch

from training.condition import Condition, thumbnails


def make(rows: int = 6) -> Condition:
    return Condition(torch.arange(rows).float()[:, None], torch.arange(rows).float()[:, None] * torch.ones(1, 3))


def test_condition_rows_stay_together() -> None:
    order = torch.tensor([4, 0, 2])
    shuffled = make()[order]
    assert shuffled.c.squeeze(1).tolist() == [4, 0, 2]
    assert shuffled.h[:, 1].tolist() == [4, 0, 2]
    assert len(make()[:4]) == 4
    assert [len(part) for part in make().split(4)] == [4, 2]


def test_condition_refuses_unequal_rows() -> None:
    with pytest.raises(ValueError, match="5 rows, h has 6"):
        Condition(torch.zeros(5, 2), torch.zeros(6, 3))


@pytest.mark.parametrize("wrong", [torch.zeros(5), torch.zeros(5, 2, 2)])
def test_condition_refuses_other_shapes(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="matrices"):
        Condition(wrong, torch.zeros(5, 3))


def test_condition_refuses_iteration_and_single_rows() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        _c, _h = make()  # type: ignore[misc]
    with pytest.raises(TypeError, match="batch axis"):
        make()[0]  # type: ignore[index]


def test_condition_can_be_absent_but_never_shorter() -> None:
    nothing = Condition.empty(5)
    assert len(nothing) == 5
    assert nothing.c.shape == nothing.h.shape == (5, 0)
    assert [len(part) for part in nothing.split(2)] == [2, 2, 1]


def test_condition_repeats_rows() -> None:
    assert make(2).repeat_interleave(2).c.squeeze(1).tolist() == [0, 0, 1, 1]


def test_thumbnails_average_and_leave_small_images_alone() -> None:
    small = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(thumbnails(small), small)
    blocks = torch.tensor([0, 200], dtype=torch.uint8).repeat(64).expand(1, 1, 128, 128)
    assert torch.equal(thumbnails(blocks), torch.full((1, 1, 64, 64), 100, dtype=torch.uint8))
