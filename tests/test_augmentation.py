"""Augmentation in a run: what the flags do, that it adapts, and that it goes on after a kill."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_RUN, Refused, invoke

import train
from training.augment import Augmentation, AugmentOptions
from training.checkpoint import read_state


def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(64, 3, 16, 16) * 2 - 1


def test_without_flags_images_are_left_alone() -> None:
    augmentation = Augmentation()
    assert augmentation(images()) is not None
    assert torch.equal(augmentation(images()), images())
    assert augmentation.stateful() == {}


def test_mirror_comes_before_everything_else() -> None:
    shown = Augmentation(mirror=True)(images())
    flipped = [not torch.equal(a, b) for a, b in zip(shown, images(), strict=True)]
    assert 16 < sum(flipped) < 48
    assert all(torch.equal(a, b.flip(2) if f else b) for a, b, f in zip(shown, images(), flipped, strict=True))


@pytest.mark.parametrize(
    "options", [AugmentOptions(aug="fixed", p=0.8), AugmentOptions(aug="diffaug"), AugmentOptions(aug="ada", p=0.8)]
)
def test_each_way_changes_images(options: AugmentOptions) -> None:
    shown = Augmentation(options)(images())
    assert shown.shape == images().shape
    assert (shown != images()).flatten(1).any(dim=1).float().mean() > 0.8


@pytest.mark.parametrize(("signs", "moves"), [(1.0, 1), (-1.0, -1)])
def test_ada_follows_the_signs_and_fixed_does_not(signs: float, moves: int) -> None:
    for aug in ("ada", "fixed"):
        augmentation = Augmentation(AugmentOptions(aug=aug, p=0.5, ada_kimg=1))
        for _ in range(4):
            augmentation.observe(torch.full((8, 1), signs))
            augmentation.end_step(8)
        assert augmentation.pipe is not None
        assert float(augmentation.pipe.p) == pytest.approx(0.5 + (moves * 4 * 8 / 1000 if aug == "ada" else 0))


def test_run_adapts_reports_and_resumes_to_the_same_tensors(patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--aug=ada", "--p=0.2", "--ada-kimg=1", "--augpipe=bg"]
    assert invoke(train.main, *flags, "--kimg=0.16", f"--outdir={tmp_path / 'whole'}").exit_code == 0
    assert invoke(train.main, *flags, "--kimg=0.08", f"--outdir={tmp_path / 'parts'}").exit_code == 0
    resumed = invoke(train.main, "--resume=latest", "--kimg=0.16", f"--outdir={tmp_path / 'parts'}")
    assert resumed.exit_code == 0, resumed.output
    states = [read_state(sorted(tmp_path.glob(f"{name}/*/training-state-*.pt"))[-1]) for name in ("whole", "parts")]
    for member in ("augment_pipe", "ada", "G", "D"):
        ours, theirs = (state["members"][member] for state in states)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])), (member, key)
    (stats,) = tmp_path.glob("whole/*/stats.jsonl")
    lines = [json.loads(line) for line in stats.read_text().splitlines()]
    strengths = [line["Progress/augment"]["mean"] for line in lines]
    assert len(set(strengths)) > 1  # it moves
    assert all(-1 <= line["Progress/overfitting"]["mean"] <= 1 for line in lines)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--aug=fixed"], ["--aug=fixed", "--p"]),
        (["--p=0.5"], ["--p=0.5 does nothing with --aug=noaug"]),
        (["--aug=fixed", "--p=0.5", "--target=0.3"], ["--target=0.3 does nothing with --aug=fixed"]),
        (["--aug=ada", "--p=1.5"], ["--p=1.5", "0 to 1"]),
        (["--aug=ada", "--target=2"], ["--target=2", "-1 to 1"]),
        (["--aug=ada", "--ada-kimg=0"], ["--ada-kimg=0", "above 0"]),
        (["--aug=diffaug", "--diffaug=colour"], ["colour", "translation"]),
        (["--aug=adaa"], ["Did you mean 'ada'?"]),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(
    flags: list[str], words: list[str], refused: Refused, patterns_zip: Path, tmp_path: Path
) -> None:
    line = refused(train.main, f"--data={patterns_zip}", f"--outdir={tmp_path}", "--cfg=tiny", *flags)
    assert all(word in line for word in words), line
    assert list(tmp_path.glob("0*")) == []
