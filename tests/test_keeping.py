"""Which snapshots stay, which is the best, and when a run ends because it gets no better."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY_RUN, Refused, invoke

import train
from training.keeping import best_of, tidy
from training.run_folder import snapshot_name, snapshots_in
from training.ticks import Ticks


def measured(run: Path, metric: str, values: dict[float, float]) -> None:
    with (run / f"metric-{metric.partition('_p')[0]}.jsonl").open("a") as file:
        for kimg, value in values.items():
            file.write(json.dumps({"kimg": kimg, "results": {metric: value}}) + "\n")


def test_best_is_lowest_or_highest_and_counts_what_came_after(tmp_path: Path) -> None:
    assert best_of(tmp_path, "fid10k") is None
    measured(tmp_path, "fid10k", {4.0: 30.0, 8.0: 20.0, 12.0: 20.0, 16.0: 25.0, 20.0: float("nan")})
    best = best_of(tmp_path, "fid10k")
    assert best is not None
    assert (best.value, best.snapshot, best.since) == (20.0, "network-snapshot-000008.pt", 2)
    measured(tmp_path, "pr10k3_precision", {4.0: 0.5, 8.0: 0.9})
    assert best_of(tmp_path, "pr10k3") == best_of(tmp_path, "pr10k3_precision")
    assert best_of(tmp_path, "pr10k3").snapshot == "network-snapshot-000008.pt"  # type: ignore[union-attr]


def test_the_newest_the_best_and_some_on_the_way_stay(tmp_path: Path) -> None:
    def numbers() -> list[int]:
        return [int(path.stem[-6:]) for path in snapshots_in(tmp_path)]

    for kimg in range(0, 60, 4):
        (tmp_path / f"network-snapshot-{kimg:06d}.pt").touch()
    assert tidy(tmp_path, None, None, None) == []
    measured(tmp_path, "fid10k", {12.0: 1.0, 24.0: 2.0})
    tidy(tmp_path, 2, 20, best_of(tmp_path, "fid10k"))
    assert numbers() == [0, 12, 20, 40, 52, 56]
    tidy(tmp_path, 1, None, None)
    assert numbers() == [56]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float | BaseException]], list[str]]:
    """Let runs measure what the test says, snapshot after snapshot."""

    def replace(values: list[float | BaseException]) -> list[str]:
        seen: list[str] = []

        def measure(path: Path) -> dict[str, float]:
            value = values[len(seen)]
            seen.append(path.name)
            if isinstance(value, BaseException):
                raise value
            measured(path.parent, "fid10k", {float(path.stem[-6:]): value})
            return {"fid10k": value}

        monkeypatch.setattr("stylegan2_icgan.preflight.check_measure", lambda loop: None)  # no detector is needed
        monkeypatch.setattr(train, "make_measure", lambda options, *_: measure if options.loop.metrics else None)
        return seen

    return replace


@pytest.mark.slow
def test_metrics_are_taken_and_a_run_ends_when_they_get_no_better(
    patterns_zip: Path, tmp_path: Path, measuring: Callable[[list[float | BaseException]], list[str]]
) -> None:
    seen = measuring([9.0, 5.0, RuntimeError("a metric that fails"), 7.0, 8.0, 1.0])
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--tick=1", "--batch=200", "--kimg=20", "--metrics=fid10k"]
    result = invoke(
        train.main, *flags, "--patience=2", "--keep-last=1", "--keep-best=fid10k", f"--outdir={tmp_path / 'runs'}"
    )
    assert result.exit_code == 0, result.output
    assert seen == [f"network-snapshot-{kimg:06d}.pt" for kimg in range(2, 7)]  # never the first
    assert "failed (RuntimeError: a metric that fails); training goes on" in result.output
    assert "best so far: fid10k 5 (network-snapshot-000003.pt)" in result.output
    assert "(no improvement)" in result.output
    (run,) = (tmp_path / "runs").iterdir()
    assert [path.name for path in snapshots_in(run)] == ["network-snapshot-000003.pt", "network-snapshot-000006.pt"]

    taken_back = ["--patience=none", "--keep-best=none", "--metrics=none"]
    result = invoke(train.main, f"--resume={run}", *taken_back, "--kimg=8")
    assert (result.exit_code, len(seen)) == (0, 5), result.output
    assert [path.name for path in snapshots_in(run)] == ["network-snapshot-000003.pt", "network-snapshot-000008.pt"]


@pytest.mark.slow
def test_interruptions_move_no_measurement(
    patterns_zip: Path, tmp_path: Path, measuring: Callable[[list[float | BaseException]], list[str]]
) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--tick=1", "--batch=200", "--metrics=fid10k", "--metrics-every=2"]
    seen = measuring([9.0] * 9)
    assert invoke(train.main, *flags, "--kimg=6", f"--outdir={tmp_path / 'whole'}").exit_code == 0
    assert seen == [f"network-snapshot-{number:06d}.pt" for number in (3, 5)]
    del seen[:]
    outdir = f"--outdir={tmp_path / 'parts'}"
    assert invoke(train.main, *flags, "--kimg=6", "--minutes=0.0001", outdir).exit_code == 0  # a step
    for kimg, minutes in ((2, 9), (6, 0.0001), (3, 9), (6, 9)):
        assert invoke(train.main, "--resume=latest", f"--minutes={minutes}", f"--kimg={kimg}", outdir).exit_code == 0
    assert seen == [f"network-snapshot-{number:06d}.pt" for number in (3, 5)]


@pytest.mark.slow
def test_a_measurement_that_a_killed_process_owed_is_made_first(
    patterns_zip: Path, tmp_path: Path, measuring: Callable[[list[float | BaseException]], list[str]]
) -> None:
    seen = measuring([9.0, KeyboardInterrupt(), 8.0, 7.0, 6.0])
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--tick=1", "--batch=200", "--metrics=fid10k", "--kimg=4"]
    outdir = f"--outdir={tmp_path / 'runs'}"
    assert invoke(train.main, *flags, outdir).exit_code == 130
    assert invoke(train.main, "--resume=latest", outdir).exit_code == 0
    assert seen == [f"network-snapshot-{number:06d}.pt" for number in (2, 3, 3, 4)]
    assert invoke(train.main, "--resume=latest", outdir).exit_code == 0
    assert len(seen) == 4


def test_ticks_are_counted_and_what_lies_between_two_is_a_part() -> None:
    ticks = Ticks(nimg=100, snap=2, batch=8)
    assert [ticks.place(cur_nimg) for cur_nimg in (96, 104, 200, 208, 304)] == [0.96, 1, 2, 2.08, 3]


def test_an_interrupted_run_overwrites_no_snapshot(tmp_path: Path) -> None:
    assert snapshot_name(2000, 8) == snapshot_name(2007, 8) == "network-snapshot-000002.pt"
    assert snapshot_name(2008, 8) == "network-snapshot-000002_008.pt"
    assert snapshot_name(992, 8) == "network-snapshot-000000.pt"  # nothing is measured so early
    for cur_nimg in (2000, 2016, 3008, 3000, 4000):
        (tmp_path / snapshot_name(cur_nimg, 8)).touch()
    there = [path.stem[17:] for path in snapshots_in(tmp_path)]
    assert there == ["000002", "000002_016", "000003", "000003_008", "000004"]
    measured(tmp_path, "fid10k", {2.0: 2.0, 3.008: 1.0})
    best = best_of(tmp_path, "fid10k")
    assert best is not None
    assert best.snapshot == "network-snapshot-000003_008.pt"
    tidy(tmp_path, 1, 2, best)
    assert [path.stem[17:] for path in snapshots_in(tmp_path)] == ["000002", "000003_008", "000004"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--patience=3"], "--patience=3 needs measurements; give --metrics, too, or --patience=none"),
        (["--keep-every=100"], "--keep-every=100 does nothing without --keep-last"),
        (["--metrics=fid10q"], "--metrics=fid10q is unknown"),
        (["--keep-last=0"], "--keep-last=0: expected at least 1"),
        (["--max-bad-steps=0"], "--max-bad-steps=0: expected at least 1"),
    ],
)
def test_settings_that_do_nothing_are_refused(
    patterns_zip: Path, refused: Refused, flags: list[str], line: str
) -> None:
    assert line in refused(train.main, f"--data={patterns_zip}", *flags)
