import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_RUN, invoke

from benchmarks import digits
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_digits_benchmark_fills_its_table_once(tmp_path: Path) -> None:
    out = tmp_path / "digits.json"
    flags = " ".join([*TINY_RUN, "--kimg=0.016"])
    first = invoke(
        digits.main, "--seeds=0", f"--out={out}", f"--flags={flags}", f"--data={ROOT / 'datasets/digits.zip'}"
    )
    assert first.exit_code == 0, first.output
    results = json.loads(out.read_text())
    assert set(results["runs"]) == {f"{cond}/0" for cond in digits.CONDS}
    assert results["classifier_accuracy"] > 0.95
    for key, row in results["runs"].items():
        assert row["frechet"] > 100  # untrained
        assert 0 <= row["recall"] <= 1
        assert (row["agreement"] is None) == (key == "none/0")
    assert first.output.count("| instance |") == 1
    again = invoke(digits.main, "--seeds=0", f"--out={out}", f"--flags={flags}")
    assert not [line for line in again.output.splitlines() if line.startswith("none/0")]
    other = invoke(digits.main, "--seeds=0", f"--out={out}", "--flags=--kimg=1")
    assert other.exit_code == 2
    assert "name another file" in other.stderr


def test_digits_classifier_tells_real_digits_from_noise() -> None:
    dataset = ImageFolderDataset(ROOT / "datasets" / "digits.zip", use_labels=True)
    dataset.decode_into_memory()
    classifier, accuracy = digits.train_classifier(dataset, epochs=6)
    assert accuracy > 0.9
    real = digits.FeatureStats().append(classifier(dataset.images(range(0, 1797, 2)))[0])
    half = digits.FeatureStats().append(classifier(dataset.images(range(1, 1797, 2)))[0])
    noise = digits.FeatureStats().append(classifier(torch.randint(0, 256, (898, 1, 16, 16), dtype=torch.uint8))[0])
    assert digits.frechet_distance(real, noise) > 20 * digits.frechet_distance(real, half)
