import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_RUN, Refused, invoke

import train
from benchmarks import instances, made_features, quality, quality_of, quality_rows, resume
from benchmarks.judges import train_classifier
from benchmarks.quality_measures import distance
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.lpips import Lpips
from stylegan2_icgan.options import resolve
from training.config import LoopOptions, to_json
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).parents[1]
LOOP = set(to_json(LoopOptions()))


def test_resume_benchmark_counts_and_restores() -> None:
    result = invoke(resume.main, "--cfg=tiny", "--resolution=16", "--repeats=1")
    assert result.exit_code == 0, result.output
    assert "tiny at 16 px: 0." in result.output
    assert "read and restored in 0." in result.output


@pytest.mark.slow
def test_quality_benchmark_fills_its_table_once(tmp_path: Path, lpips_file: Path) -> None:
    digits = read_zip(ROOT / "datasets" / "digits.zip")
    seen, unseen = tmp_path / "seen.zip", tmp_path / "unseen.zip"
    write_part(digits, seen, lambda index: index % 9 > 1)
    write_part(digits, unseen, lambda index: index % 9 == 1)
    out = tmp_path / "quality.json"
    words = " ".join([*TINY_RUN[:-1], "--kimg=0.064"])
    flags = "--seeds=0", f"--data={seen}", f"--out={out}"
    scratch = f"--scratch={tmp_path / 'scratch'}"
    first = invoke(quality.main, *flags, f"--unseen={unseen}", f"--flags={words}", "--minutes=0.001", scratch)
    assert "none/0: to be continued by the same command" in first.output, first.output
    first = invoke(quality.main, *flags, f"--unseen={unseen}", f"--flags={words}", scratch)
    assert first.exit_code == 0, first.output
    assert len(list((tmp_path / "scratch" / "none-0").iterdir())) == 1
    results = json.loads(out.read_text())
    assert set(results["runs"]) == {f"{row}/0" for row in quality_rows.CONDITIONING}
    assert results["classifier_accuracy"] > 0.95
    for key, row in results["runs"].items():
        assert row["frechet"] > 100  # untrained
        assert 0 <= row["recall"] <= 1
        assert (row["agreement"] is None) == (key == "none/0")
        assert row["unseen"]["frechet"] not in (row["frechet"], None)
        assert ("exemplars" in row) == (key == "instance/0")
    instance = results["runs"]["instance/0"]
    assert set(instance["exemplars"]) == {"10", "50", "200"}
    assert instance["frechet"] not in [few["frechet"] for few in instance["exemplars"].values()]
    assert first.output.count("| instance |") == 2
    assert first.output.count("| 50 |") == 1
    snapshot = max((tmp_path / "scratch" / "instance-0").glob("*/network-snapshot-*.pt"))
    of = invoke(quality_of.main, f"--network={snapshot}", f"--data={seen}", f"--unseen={unseen}")
    assert of.exit_code == 0, of.output
    rows, of_the_table = ({row[1:].partition("|")[2] for row in r.output.splitlines()} for r in (of, first))
    assert len(rows - {""}) > 6  # images seen and not, and three numbers of exemplars, each with a head
    assert rows <= of_the_table
    lpips = ["--lpips-weights", str(lpips_file)]
    perceived = invoke(quality_of.main, f"--network={snapshot}", f"--data={seen}", *lpips)
    assert perceived.exit_code == 0, perceived.output
    (head, _, row), others = perceived.output.splitlines()[1:4], set(of.output.splitlines())
    *before, value = row.split(" | ")
    assert head.endswith("| diversity | lpips |")
    assert float(value.removesuffix(" |")) > 0
    assert any(line.startswith(" | ".join(before)) for line in others)  # the rest is as without
    again = invoke(quality.main, *flags, f"--unseen={unseen}", f"--flags={words}")
    assert not [line for line in again.output.splitlines() if line.startswith("none/0")]
    same = [f"--unseen={unseen}", f"--flags={words}"]
    for wrong in ([f"--unseen={unseen}", "--flags=--kimg=1"], [f"--flags={words}"], [*same, *lpips]):
        other = invoke(quality.main, *flags, *wrong)
        assert other.exit_code == 2
        assert "name another file" in other.stderr


def read_zip(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def write_part(files: dict[str, bytes], path: Path, wanted: Callable[[int], bool]) -> None:
    """A data set of some images of another."""
    labels = dict(json.loads(files["dataset.json"])["labels"])
    names = [name for index, name in enumerate(sorted(labels)) if wanted(index)]
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, files[name])
        file.writestr("dataset.json", json.dumps({"labels": [[name, labels[name]] for name in names]}))


def test_perceptual_diversity_is_of_samples_of_one_condition(lpips_file: Path) -> None:
    lpips = Lpips.load([lpips_file], torch.device("cpu"))
    one, other = torch.randint(0, 256, (2, 11, 3, 16, 16), dtype=torch.uint8)
    assert distance(lpips, one, one) == 0
    assert distance(lpips, one, other) == pytest.approx(float(lpips(one, other).mean()), rel=1e-5)


def test_every_row_of_the_quality_table_is_a_configuration(refused: Refused) -> None:
    for set_name, image_set in quality_rows.SETS.items():
        for name, row in quality_rows.ROWS.items():
            if row.family in image_set.presets:
                context = train.main.make_context("train.py", row.words(image_set, set_name))
                options = resolve(context.params["cfg"], {k: v for k, v in context.params.items() if k in LOOP}, 64)
                assert options.loop.kimg > 0, name
    assert "--rows='conditoning' is unknown" in refused(quality.main, "--rows=conditoning")
    assert "has no preset for sagan" in refused(quality.main, "--set=emoji64", "--data=x.zip", "--rows=family")
    assert "--data is missing" in refused(quality.main, "--set=emoji16")


def test_judge_tells_real_digits_from_noise() -> None:
    dataset = ImageFolderDataset(ROOT / "datasets" / "digits.zip", use_labels=True)
    dataset.decode_into_memory()
    judge, accuracy = train_classifier(dataset, epochs=6)
    assert accuracy > 0.9
    real = FeatureStats().append(judge(dataset.images(range(0, 1797, 2)))[0])
    half = FeatureStats().append(judge(dataset.images(range(1, 1797, 2)))[0])
    noise = FeatureStats().append(judge(torch.randint(0, 256, (898, 1, 16, 16), dtype=torch.uint8))[0])
    assert frechet_distance(real, noise) > 20 * frechet_distance(real, half)


@pytest.mark.slow
def test_instances_benchmark_measures_every_row_and_keeps_what_it_has(tmp_path: Path) -> None:
    out, scratch = tmp_path / "instances.json", tmp_path / "scratch"
    scratch.mkdir()
    first = invoke(instances.main, "--quick", f"--out={out}", f"--scratch={scratch}")
    assert first.exit_code == 0, first.output
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == set(instances.ROWS)
    assert rows["exact-20k"]["ms_per_query"] > 0
    assert rows["rerank-100k"]["recall"] >= 0.99
    assert rows["ivf-unclustered-100k"]["search"]["method"] != "ivf"
    assert rows["ivf-1280k"]["whole_set_sec"] > rows["ivf-1280k"]["build_sec"]
    assert rows["loader"]["cached_64px_images_per_sec"] > rows["loader"]["decoded_256px_images_per_sec"]
    assert list(scratch.iterdir()) == []
    assert first.output.count("| exact-20k |") == 1
    again = invoke(instances.main, "--quick", f"--out={out}", "--only=exact-20k")
    assert json.loads(out.read_text())["rows"]["loader"] == rows["loader"]
    assert "| loader |" in again.output
    full = invoke(instances.main, f"--out={out}", "--only=loader")
    assert full.exit_code == 2
    assert "holds quick runs; name another file" in full.stderr


def test_instances_benchmark_says_when_a_goal_is_missed() -> None:
    values = {"ms_per_query": 1.5, "recall": 0.995}
    results = {"quick": False, "rows": {"ivf-100k": values}}
    assert "ms_per_query <= 1 (MISSED), recall >= 0.99 |" in instances.table(results)
    assert "MISSED" not in instances.table(results | {"quick": True})


def test_instances_benchmark_refuses_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "_free_bytes", lambda folder: 1_000_000)
    with pytest.raises(instances.UserError, match=r"has 0.0 GB free, ivf-1280k writes 5.2 GB; name a folder"):
        instances.run_row("ivf-1280k", quick=False, repeats=None, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_made_features_are_unit_vectors_in_clusters(tmp_path: Path) -> None:
    features = made_features.clustered(2000, 96)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    made_features.clustered_file(tmp_path / "features.npy", 2000, 96)
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), features.astype(np.float16))
    nearest = [np.sort(x[:200] @ x.T)[:, -11].mean() for x in (features, made_features.unclustered(2000, 96))]
    assert nearest[0] > nearest[1] + 0.2
