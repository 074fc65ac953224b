"""Which images, labels and instances are drawn how often, and that they belong together."""

import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_RUN, Refused, invoke, pattern_images, write_zip

import train
from stylegan2_icgan.instances import InstanceDataset, instances_near
from stylegan2_icgan.making import StoreOptions, ensure_store
from training.class_prior import ClassDraws, Lists, class_prior
from training.dataset import Draws, ImageFolderDataset, LabelledSource
from training.loading import fake_draws, make_loader, real_draws
from training.randomness import hashed

LONG_TAIL = (1280, 20, 5)
MANY = 200_000


def seeds(count: int, stream: int = 0) -> np.ndarray:
    return hashed(7, stream, np.arange(count))


def any_draws(count: int, size: int) -> Draws:
    return Draws(np.arange(count) % size, seeds(count))


def assert_shares(counts: np.ndarray, expected: np.ndarray) -> None:
    """Each count within five standard deviations of what the shares promise."""
    total = counts.sum()
    deviation = np.sqrt(total * expected * (1 - expected))
    assert (np.abs(counts - total * expected) <= 5 * deviation + 1e-9).all(), (counts / total, expected)


class Stub:
    """The parts of a data set and of a store that draws look at; image j is a picture of the number j."""

    def __init__(self, class_ids: np.ndarray, neighbours: np.ndarray, h_dtype: type = np.float32) -> None:
        num = len(class_ids)
        self.class_ids, self.path = class_ids, Path("stub.zip")
        self.name, self.c_dim, self.resolution, self.num_channels = "stub", int(class_ids.max()) + 1, 8, 1
        angle = np.arange(num) / num
        self.features = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(
            h_dtype
        )  # the row tells which one it is
        self.features_mirror = -self.features
        self.store: Any = SimpleNamespace(
            k=neighbours.shape[1],
            h_dim=2,
            features=self.features,
            features_mirror=self.features_mirror,
            neighbours=neighbours,
        )

    def __len__(self) -> int:
        return len(self.class_ids)

    def training_images(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(indices))[:, None, None, None].expand(-1, 1, 8, 8)

    def labels(self, indices: np.ndarray) -> torch.Tensor:
        return torch.eye(self.c_dim)[torch.from_numpy(self.class_ids[indices])]

    def instance_of(self, h: torch.Tensor) -> np.ndarray:
        """Whose feature each row is."""
        angle = torch.atan2(h[:, 1], h[:, 0]).double().numpy()
        return np.rint(angle * len(self)).astype(np.int64)


def random_graph(num: int, k: int, seed: int = 0) -> np.ndarray:
    """k distinct others for each of `num`, some far more popular than others."""
    rng = np.random.default_rng(seed)
    score = rng.random((num, num)) + 0.3 * rng.random(num)
    np.fill_diagonal(score, -1)
    return np.argsort(-score, axis=1)[:, :k]


def source_of(stub: Stub, k: int, **options: Any) -> InstanceDataset:
    return InstanceDataset(stub, stub.store, k, **options)  # type: ignore[arg-type]


# -- the prior -----------------------------------------------------------------------------------------------------


def test_balanced_means_uniform_and_the_temperature_interpolates() -> None:
    counts = np.array(LONG_TAIL)
    np.testing.assert_allclose(class_prior(counts, None), [1 / 3] * 3)
    np.testing.assert_allclose(class_prior(counts, math.inf), [1 / 3] * 3)
    np.testing.assert_allclose(class_prior(counts, 1), counts / 1305)
    roots = np.sqrt(counts)
    np.testing.assert_allclose(class_prior(counts, 2), roots / roots.sum())
    np.testing.assert_allclose(class_prior(counts, 1e-320), [1, 0, 0])  # cold: the largest only, and no NaN


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (None, [1 / 3, 1 / 3, 1 / 3]),
        (1.0, [1280 / 1305, 20 / 1305, 5 / 1305]),
        (2.0, [0.84572, 0.10571, 0.04857]),  # square roots 35.777, 4.472, 2.236... of the shares
    ],
)
def test_classes_are_drawn_as_the_prior_says(temperature: float | None, expected: list[float]) -> None:
    class_ids = np.repeat([4, 0, 9], LONG_TAIL)  # numbers with gaps: classes without images are never drawn
    if temperature == 2.0:
        expected = list(np.sqrt(LONG_TAIL) / np.sqrt(LONG_TAIL).sum())
    images = ClassDraws(class_ids, temperature).images(seeds(MANY))
    counts = np.bincount(class_ids[images], minlength=10)
    assert counts.sum() == MANY
    assert counts[[1, 2, 3, 5, 6, 7, 8]].sum() == 0
    assert_shares(counts[[4, 0, 9]], np.array(expected))
    within = np.bincount(images[class_ids[images] == 0], minlength=1305)[1280:1300]
    assert_shares(within, np.full(20, 1 / 20))  # and every image of a class as often as any other


def test_lists_are_grouped_and_drawn_from_evenly() -> None:
    lists = Lists.grouped(np.array([2, 0, 2, 2]), 4, np.array([10, 11, 12, 13]))
    assert lists.lengths().tolist() == [1, 0, 3, 0]
    drawn = lists.draw(np.full(30_000, 2), np.random.default_rng(0).random(30_000))
    assert_shares(np.array([(drawn == item).sum() for item in (10, 12, 13)]), np.full(3, 1 / 3))
    edge = np.nextafter(1.0, 0)  # the largest draw there is
    assert lists.draw(np.array([0, 2]), np.array([edge, edge])).tolist() == [11, 13]


# -- class balanced, labels only -----------------------------------------------------------------------------------


def test_labels_only_draws_images_of_the_class(tmp_path: Path) -> None:
    images, _ = pattern_images(24)
    labels = [0] * 20 + [2] * 3 + [3]
    dataset = ImageFolderDataset(write_zip(tmp_path / "long.zip", images, labels), use_labels=True)
    source = LabelledSource(dataset, "class")
    sample = source[any_draws(6000, 24)]
    assert_shares(np.bincount(sample.c.argmax(1).numpy(), minlength=4)[[0, 2, 3]], np.full(3, 1 / 3))
    for image, c, j in zip(sample.image[:50], sample.c[:50], sample.index[:50].tolist(), strict=True):
        assert np.array_equal(image.numpy(), dataset.image(j))
        assert c.argmax() == labels[j]
    assert torch.equal(source.conditions(any_draws(6000, 24)).c, sample.c)  # fakes are drawn by the same rule
    plain = LabelledSource(dataset, "class", 1.0)[any_draws(6000, 24)]
    assert_shares(np.bincount(plain.c.argmax(1).numpy(), minlength=4)[[0, 2, 3]], np.array([20, 3, 1]) / 24)


# -- instances -----------------------------------------------------------------------------------------------------


def test_reversed_lists_are_the_neighbour_lists_the_other_way_round() -> None:
    neighbours = random_graph(60, 5)
    for array in (neighbours, neighbours.astype(np.int32), random_graph(60, 8)[:, :5]):  # the last: not contiguous
        near = instances_near(array)
        assert near.items.dtype == np.int32
        for j in range(60):
            assert (
                near.items[near.starts[j] : near.starts[j + 1]].tolist()
                == np.flatnonzero((array == j).any(axis=1)).tolist()
            )


def test_instance_policy_draws_all_instances_alike_and_then_neighbours_alike() -> None:
    stub = Stub(np.arange(50) % 3, random_graph(50, 6))
    source = source_of(stub, 4)
    draws = real_draws(50, seed=0, start=0, count=50 * 1000)
    sample = source[draws]
    i, j = stub.instance_of(sample.h), sample.index.numpy()
    assert (np.bincount(i, minlength=50) == 1000).all()  # an epoch is a permutation
    column = (stub.store.neighbours[i, :4] == j[:, None]).argmax(axis=1)
    assert (stub.store.neighbours[i, column] == j).all()
    assert_shares(np.bincount(column, minlength=4), np.full(4, 1 / 4))
    fakes = stub.instance_of(source.conditions(fake_draws(50, 0, 0, 0, MANY)).h)
    assert_shares(np.bincount(fakes, minlength=50), np.full(50, 1 / 50))


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_class_policy_draws_class_image_and_instance_jointly(temperature: float | None) -> None:
    k, class_ids = 4, np.repeat([0, 1, 2], [128, 12, 5])
    stub = Stub(class_ids, random_graph(145, 7))
    source = source_of(stub, k, sampling="class", class_temperature=temperature)
    sample = source[any_draws(MANY, 145)]
    i, j, y = stub.instance_of(sample.h), sample.index.numpy(), sample.c.argmax(1).numpy()
    used = stub.store.neighbours[:, :k]

    assert (used[i] == j[:, None]).any(axis=1).all()  # every pair is a pair of neighbours
    assert (class_ids[j] == y).all()
    assert (sample.image[:, 0, 0, 0].numpy() == j).all()
    assert_shares(np.bincount(y, minlength=3), class_prior(np.array([128, 12, 5]), temperature))

    popularity = np.bincount(used.ravel(), minlength=145)
    assert (popularity == 0).any()
    assert all((popularity[class_ids == label] > 0).any() for label in range(3))
    for label in range(3):  # image: uniform among those of the class that somebody has as a neighbour
        wanted = (class_ids == label) & (popularity > 0)
        counts = np.bincount(j[y == label], minlength=145)
        assert counts[~wanted].sum() == 0
        assert_shares(counts[wanted], np.full(wanted.sum(), 1 / wanted.sum()))
    image = int(np.argmax(popularity * (class_ids == 1)))  # instance: uniform among those that have it
    have_it = np.flatnonzero((used == image).any(axis=1))
    assert len(have_it) > 1
    counts = np.bincount(i[j == image], minlength=145)
    assert_shares(counts[have_it], np.full(len(have_it), 1 / len(have_it)))


def test_class_policy_draws_fakes_as_it_draws_reals_and_reads_no_image() -> None:
    stub = Stub(np.repeat([0, 1], [30, 10]), random_graph(40, 5))
    source = source_of(stub, 5, sampling="class")
    draws = any_draws(500, 40)
    real = source[draws]
    stub.training_images = None  # type: ignore[assignment, method-assign]
    fake = source.conditions(draws)
    assert torch.equal(fake.c, real.c)
    assert torch.equal(fake.h, real.h)
    other = source.conditions(fake_draws(40, 0, 0, 0, 500))
    assert not torch.equal(other.h, real.h)


def test_class_policy_serves_a_class_that_is_nobodys_neighbour() -> None:
    neighbours = np.array([[1, 2], [2, 0], [0, 1], [0, 1], [1, 2]])  # 3 and 4, all of class 1, are in no list
    stub = Stub(np.array([0, 0, 0, 1, 1]), neighbours)
    sample = source_of(stub, 2, sampling="class")[any_draws(20_000, 5)]
    i, j, y = stub.instance_of(sample.h), sample.index.numpy(), sample.c.argmax(1).numpy()
    assert_shares(np.bincount(y), np.array([0.5, 0.5]))
    assert_shares(np.bincount(j[y == 1] - 3), np.array([0.5, 0.5]))
    rare = y == 1
    assert (neighbours[j[rare]] == i[rare, None]).any(axis=1).all()  # i from the image's own list
    assert {(a, b) for a, b in zip(j[rare].tolist(), i[rare].tolist(), strict=True)} == {(3, 0), (3, 1), (4, 1), (4, 2)}
    assert (neighbours[i[~rare]] == j[~rare, None]).any(axis=1).all()


def test_class_policy_mirrors_instances_half_the_time_whatever_else_is_drawn() -> None:
    stub = Stub(np.repeat([0, 1], [30, 10]), random_graph(40, 5))
    plain = source_of(stub, 5, sampling="class")[any_draws(20_000, 40)]
    mirrored = source_of(stub, 5, mirror_instances=True, sampling="class")[any_draws(20_000, 40)]
    assert torch.equal(plain.index, mirrored.index)
    flipped = (mirrored.h == -plain.h).all(dim=1)
    assert ((mirrored.h == plain.h).all(dim=1) ^ flipped).all()
    for label in range(2):
        here = flipped[plain.c.argmax(1) == label].numpy()
        assert_shares(np.bincount(here.astype(int)), np.array([0.5, 0.5]))


def test_stored_halves_and_int32_neighbours_give_unit_features_and_the_same_pairs() -> None:
    neighbours = random_graph(40, 5)
    for sampling in ("instance", "class"):
        whole, compact = (
            source_of(Stub(np.arange(40) % 2, array, dtype), 5, sampling=sampling, mirror_instances=True)[
                any_draws(300, 40)
            ]
            for array, dtype in ((neighbours, np.float32), (neighbours.astype(np.int32), np.float16))
        )
        assert torch.equal(whole.index, compact.index)
        assert compact.index.dtype == torch.int64
        assert compact.h.dtype == torch.float32
        assert (compact.h.norm(dim=1) - 1).abs().max() < 1e-6  # float16 rows are up to 5e-4 off
        assert torch.allclose(whole.h, compact.h, atol=1e-3)


def test_class_policy_works_on_a_subset_with_its_own_store(patterns_zip: Path) -> None:
    part = ImageFolderDataset(patterns_zip, use_labels=True, max_images=17, subset_seed=1)
    store = ensure_store(part, StoreOptions(k=3))
    source = InstanceDataset(part, store, 3, mirror_instances=True, sampling="class")
    sample = source[any_draws(400, 17)]
    assert part.class_ids is not None
    present = np.unique(part.class_ids)
    assert_shares(
        np.bincount(sample.c.argmax(1).numpy(), minlength=4)[present], np.full(len(present), 1 / len(present))
    )
    for image, c, j in zip(sample.image, sample.c, sample.index.tolist(), strict=True):
        assert np.array_equal(image.numpy(), part.image(j))
        assert c.argmax() == part.class_ids[j]


def test_class_policy_draws_the_same_after_pickling_and_with_workers(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip, use_labels=True)
    source = InstanceDataset(dataset, ensure_store(dataset, StoreOptions(k=5)), 5, sampling="class")
    copied = pickle.loads(pickle.dumps(source))
    draws = any_draws(50, 40)
    alone, helped = (make_loader(source, 0, 0, 16, workers) for workers in (0, 2))
    for one, other in [*zip(source[draws], copied[draws], strict=True), *zip(next(alone), next(helped), strict=True)]:
        assert torch.equal(one, other)


# -- flags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cond=instance", "--sampling=class"], "--sampling=class draws classes, but --cond=instance has none"),
        (["--cond=none", "--sampling=class", "--class-temperature=2"], "but --cond=none has none"),
        (["--cond=class", "--class-temperature=2"], "--class-temperature=2 given with --sampling=instance"),
        (
            ["--cond=class", "--sampling=class", "--class-temperature=0"],
            "--class-temperature=0: expected a number above",
        ),
        (["--cond=class", "--sampling=class", "--class-temperature=nan"], "--class-temperature=nan: expected"),
        (["--cond=class", "--sampling=class", "--class-temperature=-1"], "--class-temperature=-1: expected"),
    ],
)
def test_contradictory_flags_are_refused(
    patterns_zip: Path, tmp_path: Path, refused: Refused, flags: list[str], says: str
) -> None:
    run = [*TINY_RUN, "--kimg=0.016", f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}"]
    assert says in refused(train.main, *run, *flags)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
@pytest.mark.parametrize("cond", ["class", "instance+class"])
def test_a_run_trains_by_class(patterns_zip: Path, tmp_path: Path, cond: str) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--cond={cond}", f"--outdir={tmp_path / 'runs'}"]
    flags += ["--k=4"] if "instance" in cond else []
    result = invoke(train.main, *flags, "--kimg=0.064", "--sampling=class", "--class-temperature=inf")
    assert result.exit_code == 0, result.output
    resumed = invoke(train.main, f"--resume={next((tmp_path / 'runs').iterdir())}", "--kimg=0.128")
    assert resumed.exit_code == 0, resumed.output
