from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan2_icgan.search import kmeans as kmeans_module
from stylegan2_icgan.search.kmeans import kmeans, nearest_centre
from stylegan2_icgan.selection import kmeans_exemplars, per_class_exemplars, random_exemplars, select
from torch_utils.command_line import UserError


def groups(count: int, per_group: int, width: int = 16, noise: float = 0.02) -> np.ndarray:
    """Unit vectors: row i belongs to group i // per_group."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((count, width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    features = centres.repeat(per_group, axis=0) + noise * rng.standard_normal((count * per_group, width))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def reader(points: np.ndarray):
    return lambda ids: torch.from_numpy(points[ids])


def test_exemplars_cover_every_cluster_once_each() -> None:
    features = groups(12, 30)
    chosen = kmeans_exemplars(features, 60)
    assert len(set(chosen.tolist())) == 60
    assert set(chosen // 30) == set(range(12))
    assert np.array_equal(chosen, kmeans_exemplars(features, 60))
    assert not np.array_equal(chosen, kmeans_exemplars(features, 60, seed=1))


def test_exemplars_are_the_rows_nearest_to_the_centres_of_their_groups() -> None:
    features = groups(8, 40)
    chosen = kmeans_exemplars(features, 8)
    means = features.reshape(8, 40, -1).mean(axis=1)
    distances = np.linalg.norm(features.reshape(8, 40, -1) - means[:, None], axis=2)
    assert chosen.tolist() == (np.arange(8) * 40 + distances.argmin(axis=1)).tolist()


def test_exemplars_of_identical_rows_are_still_distinct() -> None:
    features = np.ones((50, 4), np.float32) / 2
    assert len(set(kmeans_exemplars(features, 49).tolist())) == 49
    assert kmeans_exemplars(features, 100).tolist() == list(range(50))


def test_exemplars_from_mapped_float16_are_those_of_the_rows_in_memory(tmp_path: Path) -> None:
    features = groups(10, 20).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    chosen = kmeans_exemplars(mapped, 30)
    assert np.array_equal(chosen, kmeans_exemplars(features, 30))
    assert set(chosen // 20) == set(range(10))


def test_exemplars_per_class_take_some_of_every_class_and_all_of_a_small_one() -> None:
    features, class_ids = groups(6, 20), np.repeat([4, 0, 2], 40)
    class_ids[:3] = 7  # a class of three
    chosen = per_class_exemplars(features, class_ids, 5)
    assert len(set(chosen.tolist())) == len(chosen)
    assert {c: int((class_ids[chosen] == c).sum()) for c in (0, 2, 4, 7)} == {0: 5, 2: 5, 4: 5, 7: 3}
    # Each of these classes has two groups, and two exemplars are one of each.
    assert (per_class_exemplars(features, np.repeat([4, 0, 2], 40), 2) // 20).tolist() == list(range(6))


def test_random_exemplars_are_distinct_and_repeat_with_their_seed() -> None:
    chosen = random_exemplars(1000, 200, seed=3)
    assert len(set(chosen.tolist())) == 200
    assert np.array_equal(chosen, random_exemplars(1000, 200, seed=3))
    assert not np.array_equal(chosen, random_exemplars(1000, 200, seed=4))
    assert random_exemplars(5, 10).tolist() == [0, 1, 2, 3, 4]


def test_select_finds_the_way_by_its_name() -> None:
    features, class_ids = groups(4, 10), np.repeat(np.arange(4), 10)
    assert np.array_equal(select(features, "kmeans", 4), kmeans_exemplars(features, 4))
    assert np.array_equal(select(features, "random", 4, seed=1), random_exemplars(40, 4, seed=1))
    assert len(select(features, "per-class", 3, class_ids)) == 12


@pytest.mark.parametrize(
    ("how", "count", "text"),
    [
        ("k-means", 4, "expected one of kmeans, per-class, random. Did you mean 'kmeans'?"),
        ("per-class", 4, "need class labels, and the data has none"),
        ("kmeans", 0, "0 exemplars; expected at least 1"),
    ],
)
def test_select_refuses(how: str, count: int, text: str) -> None:
    with pytest.raises(UserError) as refusal:
        select(groups(2, 4), how, count)
    assert text in str(refusal.value)


def test_kmeans_gives_every_group_a_centre_where_random_beginnings_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    points = groups(40, 25, width=8, noise=0.01)
    inertia = [kmeans(reader(points), 1000, 40, seed).inertia for seed in range(3)]
    monkeypatch.setattr(
        kmeans_module, "first_centres", lambda read, num, count, seed: read(random_exemplars(num, count, seed))
    )
    at_random = [kmeans(reader(points), 1000, 40, seed, iterations=20).inertia for seed in range(3)]
    assert np.mean(inertia) < 0.5 * np.mean(at_random)


def test_kmeans_moves_a_centre_that_lost_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    points = groups(5, 20, noise=0.001)
    far_off = torch.full((1, 16), 50.0)
    monkeypatch.setattr(
        kmeans_module,
        "first_centres",
        lambda read, num, count, seed: torch.cat([read(np.array([0, 20, 40, 60])), far_off]),
    )
    centres = kmeans(reader(points), 100, 5).centres
    assert sorted(nearest_centre(torch.from_numpy(points[::20]), centres)[1].tolist()) == [0, 1, 2, 3, 4]


def test_kmeans_is_the_same_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = groups(7, 30)
    whole = kmeans(reader(points), 210, 7).centres
    monkeypatch.setattr(kmeans_module, "BLOCK", 32)
    torch.testing.assert_close(kmeans(reader(points), 210, 7).centres, whole, atol=1e-6, rtol=0)


def test_sums_on_a_device_are_those_of_the_cpu() -> None:
    """The way taken on a GPU, where adding by index would add in any order."""
    points, labels = torch.from_numpy(groups(4, 10)), torch.arange(40) % 3
    expected = torch.stack([points[labels == c].sum(dim=0) for c in range(3)])
    sums, sizes = torch.zeros(3, 16), torch.zeros(3)
    kmeans_module.add_by_label(sums, sizes, points, labels, by_product=True)
    torch.testing.assert_close(sums, expected)
    assert sizes.tolist() == [14, 13, 13]
