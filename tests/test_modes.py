"""The benchmark of modes: what its numbers mean, what its methods are shown, and that it goes on where it stopped."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Refused, invoke

from benchmarks import modes, stacked_digits
from benchmarks.mixtures import MIXTURES, Mixture, reverse_kl
from benchmarks.mode_methods import METHODS
from benchmarks.mode_tasks import TASKS, Known, KnownSource, mixture, nearest, principal, train
from stylegan2_icgan.clusters import Clusters
from training.loading import fake_draws, real_draws

TWO = Mixture(np.array([[0.0, 0.0], [10.0, 0.0]]), std=1.0)


def test_quality_is_a_box_of_three_deviations_and_one_sample_finds_a_mode() -> None:
    corner = [[2.9, -2.9]]  # within 3 in each coordinate, at a distance of 4.1
    assert TWO.measure(np.array(corner * 4)) == {"modes": 1, "quality": 1.0, "reverse_kl": pytest.approx(math.log(2))}
    points = np.array([*corner, [3.1, 0.0], [0.0, 3.1], [10.0, 0.0]])
    found = TWO.measure(points)
    assert (found["modes"], found["quality"]) == (2, 0.5)
    # Samples that are no good count for the nearest mode all the same: 3 and 1 of 4.
    assert found["reverse_kl"] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert TWO.measure(np.array([[4.9, 50.0]])) == {
        "modes": 0,
        "quality": 0.0,
        "reverse_kl": pytest.approx(math.log(2)),
    }


def test_reverse_kl_has_the_base_it_is_given() -> None:
    one_of_many = np.array([7, *[0] * 999])
    assert reverse_kl(one_of_many) == pytest.approx(math.log(1000))
    assert reverse_kl(one_of_many, base=10) == pytest.approx(3)
    assert reverse_kl(np.full(8, 5)) == pytest.approx(0)


@pytest.mark.parametrize(("name", "num_modes", "radius"), [("ring", 8, 2.0), ("grid", 25, 4 * math.sqrt(2))])
def test_the_mixture_itself_has_all_modes_and_the_divergence_of_chance(
    name: str, num_modes: int, radius: float
) -> None:
    law = MIXTURES[name]
    assert np.linalg.norm(law.centres, axis=1).max() == pytest.approx(radius)
    points, labels = law.draw(50_000, seed=0)
    found = law.measure(points)
    assert found["modes"] == num_modes == len(np.unique(labels))
    assert found["quality"] == pytest.approx(math.erf(3 / math.sqrt(2)) ** 2, abs=0.002)
    assert 0.2 < found["reverse_kl"] / ((num_modes - 1) / 100_000) < 3
    assert points[labels == 0].std(axis=0) == pytest.approx([law.std] * 2, rel=0.1)


def line(num: int) -> Known:
    """Points at 1, 1.1, 1.21, ... on a line, of two modes."""
    h = (1.1 ** torch.arange(num))[:, None]
    return Known(h[:, :, None, None], np.arange(num) % 2, h)


def test_the_nearest_rows_are_others() -> None:
    assert nearest(line(5).h, 2).tolist() == [[1, 2], [0, 2], [1, 3], [2, 4], [3, 2]]


def test_real_points_are_near_the_point_that_conditions_them() -> None:
    known = line(40)
    source = KnownSource(known, "instance", 2, Clusters(known, 2, 1, 40, 0), k=3)
    sample = source[real_draws(40, 0, 0, 200)]
    asked, shown = sample.h[:, 0], sample.image[:, 0, 0, 0]
    assert torch.equal(asked, known.h[sample.index, 0])
    rows = {
        float(h): {float(known.h[j, 0]) for j in near} for h, near in zip(known.h, nearest(known.h, 3), strict=True)
    }
    assert all(float(x) in rows[float(h)] for x, h in zip(shown, asked, strict=True))
    assert (shown != asked).all()


def test_fakes_are_measured_for_conditions_as_often_as_they_are_stored() -> None:
    known = line(40)
    clusters = Clusters(known, 4, 1, 40, 0)
    clusters.labels = np.repeat([0, 1, 3], [4, 12, 24])
    source = KnownSource(known, "cluster", 2, clusters, k=3)
    drawn = source.conditions(fake_draws(40, 0, 0, 0, 20_000)).c.mean(dim=0)
    assert drawn.tolist() == pytest.approx([0.1, 0.3, 0, 0.6], abs=0.02)


def test_principal_components_keep_what_varies() -> None:
    rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[3.0, 4, 0], [0, 0, 1]])
    one = principal(rows, 1)
    assert one.abs().flatten().tolist() == pytest.approx([1.0] * 200)
    agree = (one[:, 0] * (rows - rows.mean(dim=0))[:, 1]).sign()
    assert abs(float(agree.sum())) == 200  # of one sign: the component is the long axis


def test_a_triple_of_digits_is_one_of_a_thousand_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_brightness(images: torch.Tensor) -> tuple[None, torch.Tensor]:
        assert images.dtype == torch.uint8
        return None, torch.nn.functional.one_hot((images.float().mean(dim=[1, 2, 3]) / 25).round().long(), 10)

    monkeypatch.setattr(stacked_digits, "train_classifier", lambda dataset: (by_brightness, 1.0))
    digits = stacked_digits.StackedDigits()
    pixels, found = digits.draw(2000, seed=0)
    assert pixels.shape == (2000, 3, 16, 16)
    assert pixels.min() == -1
    assert pixels.max() > 0.5
    assert (found.min() < 20, found.max() > 980) == (True, True)
    assert set(found // 100) == set(found // 10 % 10) == set(found % 10) == set(range(10))

    levels = torch.tensor([[1, 2, 3], [1, 2, 3], [3, 2, 1], [0, 0, 0]]) * 25
    images = (levels[:, :, None, None].expand(-1, -1, 16, 16) / 127.5 - 1).float()
    assert digits._triples(images).tolist() == [123, 123, 321, 0]
    expected = 0.5 * math.log10(500) + 0.5 * math.log10(250)
    assert digits.measure(images) == {"modes": 3, "reverse_kl": pytest.approx(expected)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_its_points(method: str) -> None:
    known = TASKS["ring"].make(0)
    few = Known(known.pixels[:300], known.modes[:300], known.h[:300])
    small = dataclasses.replace(mixture("ring", width=8), make=lambda seed: few, sample=200, recluster=10, samples=200)
    results = [train(small, METHODS[method], seed=0, steps=steps) for steps in (5, 25)]
    assert all(math.isfinite(value) for result in results for value in result.values())
    assert results[0] != results[1]


def test_finished_runs_are_not_repeated(refused: Refused, tmp_path: Path) -> None:
    flags = ["--task=ring", "--steps=3", f"--out={tmp_path / 'modes.json'}"]
    first = invoke(modes.main, *flags, "--method=GAN", "--seeds=0")
    assert first.exit_code == 0, first.output
    before = json.loads((tmp_path / "modes.json").read_text())["runs"]
    assert invoke(modes.main, *flags, "--method=GAN", "--seeds=0").exit_code == 0
    assert json.loads((tmp_path / "modes.json").read_text())["runs"] == before
    more = invoke(modes.main, *flags, "--method=GAN", "--method=LOGAN", "--seeds=0-1", "--jobs=2")
    after = json.loads((tmp_path / "modes.json").read_text())["runs"]
    assert set(after) == {"ring/GAN/0", "ring/LOGAN/0", "ring/GAN/1", "ring/LOGAN/1"}
    assert after["ring/GAN/0"] == before["ring/GAN/0"]
    assert "| GAN | 2 |" in more.output
    assert "modes of 8" in more.output
    assert invoke(modes.main, *flags, "--seeds=2", "--minutes=0").exit_code == 0
    assert set(json.loads((tmp_path / "modes.json").read_text())["runs"]) == set(after)
    alone = train(TASKS["ring"], METHODS["LOGAN"], seed=1, steps=3)  # as in a process of its own
    assert {name: after["ring/LOGAN/1"][name] for name in alone} == alone
    assert "name another file for --steps=4" in refused(modes.main, *flags, "--steps=4")


def test_the_table_has_means_and_deviations() -> None:
    runs = {f"grid/GAN/{seed}": {"modes": 10 + seed, "quality": 0.5, "reverse_kl": 0.25 * seed} for seed in (0, 2)}
    assert modes.table(runs | {"stacked/LOGAN/0": {"modes": 900, "reverse_kl": 0.1}}).splitlines() == [
        "| grid | seeds | modes of 25 | high quality | reverse KL |",
        "|---|---|---|---|---|",
        "| GAN | 2 | 11.0 ± 1.4 | 0.500 ± 0.000 | 0.250 ± 0.354 |",
        "",
        "| stacked | seeds | modes of 1,000 | reverse KL |",
        "|---|---|---|---|",
        "| LOGAN | 1 | 900.0 | 0.100 |",
    ]


@pytest.mark.slow
def test_clusters_as_labels_find_every_mode_of_the_grid() -> None:
    found = train(TASKS["grid"], METHODS["self-conditioned"], seed=0, steps=10_000)
    assert found["modes"] == 25
    assert found["quality"] > 0.9  # 1.0 was measured


@pytest.mark.slow
def test_no_labels_do_not_find_every_mode_of_the_grid() -> None:
    found = train(TASKS["grid"], METHODS["GAN"], seed=0, steps=10_000)
    assert found["modes"] < 22  # 18
    assert found["quality"] < 0.75  # 0.51
