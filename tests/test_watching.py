"""Curves, advice, and what they are drawn from."""

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY_RUN, Refused, invoke

import plot_run
import train
from torch_utils.curves import draw_panels, ticks
from training import advice
from training.advice import AGAIN_AFTER, Advice
from training.preview import heed, variety
from training.writers import IDENTITY, TensorBoard, WeightsAndBiases


def test_advice_is_given_when_it_is_due_and_not_at_every_tick() -> None:
    given = Advice()
    fine = {"Loss/signs/real": {"mean": 0.6}, "Loss/signs/fake": {"mean": -0.6}, "Progress/variety": {"mean": 0.9}}
    assert given.lines(fine) == []
    wins = {"Loss/signs/real": {"mean": 1.0}, "Loss/signs/fake": {"mean": -0.99}}
    (line,) = given.lines(wins)
    assert "discriminator tells real from fake" in line
    assert [given.lines(wins) for _ in range(AGAIN_AFTER - 1)] == [[]] * (AGAIN_AFTER - 1)
    assert given.lines(wins) == [line]
    overfits = {"Progress/augment": {"mean": 1.0}, "Loss/signs/real": {"mean": 0.7}}
    all_three = given.lines(overfits | {"Progress/variety": {"mean": 0.1}, "Progress/heed": {"mean": 0.9}})
    assert ["limit" in all_three[0], "collapsed" in all_three[1], "heed" in all_three[2]] == [True, True, True]
    assert Advice().lines({"Progress/augment": {"mean": 1.0}, "Loss/signs/real": {"mean": 0.1}}) == []


def test_variety_is_none_of_equal_images_and_that_of_noise() -> None:
    assert variety(torch.full((5, 3, 4, 4), 7, dtype=torch.uint8)) == 0
    noise = torch.randint(0, 256, (2000, 1, 4, 4), dtype=torch.uint8)
    assert variety(noise) == pytest.approx(256 / 12**0.5, rel=0.03)


def test_heed_tells_rows_of_one_condition_from_rows_by_chance() -> None:
    rows = torch.randint(0, 200, (8, 8, 1, 16, 16), dtype=torch.uint8)
    assert heed(rows) == pytest.approx(1, abs=0.15)
    condition = torch.randint(0, 56, (8, 1, 1, 16, 16), dtype=torch.uint8)
    expected = 1 + 8 * (56 / 200) ** 2  # both variances are those of uniform numbers
    assert heed(rows + condition) == pytest.approx(expected, rel=0.15)
    assert heed(condition.expand(rows.shape)) > 1000


def test_advice_and_its_figures_reach_the_log(
    patterns_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "HEEDLESS", 1e9)
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--cond=class", "--snap=2", f"--outdir={tmp_path / 'runs'}"]
    result = invoke(train.main, *flags, "--kimg=0.128")
    assert result.exit_code == 0, result.output
    (run,) = (tmp_path / "runs").iterdir()
    assert "advice: fakes of different conditions are alike" in (run / "log.txt").read_text()
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [("Progress/heed" in line, "Progress/variety" in line) for line in lines] == [(False,) * 2, (True,) * 2] * 2
    assert {"img/s", "left"} <= set((run / "log.txt").read_text().split())


def test_the_reason_of_an_end_is_in_the_log(patterns_zip: Path, tmp_path: Path, refused: Refused) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--d-lr=1e30", "--max-bad-steps=2", f"--outdir={tmp_path / 'runs'}"]
    line = refused(train.main, *flags, "--kimg=1")
    (run,) = (tmp_path / "runs").iterdir()
    assert f"Ended by an error: {line.removeprefix('Error: ')}" in (run / "log.txt").read_text()


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 10) == [0, 5, 10]
    assert ticks(-0.31, 0.52) == pytest.approx([0, 0.5])
    assert len(ticks(1e-7, 3e6)) <= 5
    assert ticks(2, 2)


def test_lines_are_drawn_where_the_values_are() -> None:
    rising = [(float(x), float(x)) for x in range(50)]
    image = np.asarray(draw_panels({"a": {"": rising}, "b": {"": []}, "c": {"": [(0, float("nan"))]}}, "kimg"))
    blue = (image == [0x1F, 0x5F, 0xA8]).all(axis=2)
    rows, columns = blue[:200, :560].nonzero()
    assert len(rows) > 100
    assert rows[columns.argmin()] > rows[columns.argmax()]  # from bottom left to top right
    assert not blue[:200, 560:].any()


def test_curves_of_a_run_are_drawn(patterns_zip: Path, tmp_path: Path, refused: Refused) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--aug=ada", f"--outdir={tmp_path / 'runs'}", "--kimg=0.096"]
    assert invoke(train.main, *flags).exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    (run / "metric-fid10k.jsonl").write_text(json.dumps({"kimg": 1.0, "results": {"fid10k": 3.0}}) + "\n")
    with (run / "stats.jsonl").open("a") as file:
        file.write('{"cut short')
    assert "Progress/variety" in (run / "stats.jsonl").read_text()
    assert "Progress/heed" not in (run / "stats.jsonl").read_text()  # there is no condition
    assert set(plot_run.curves_of(run)) >= {"loss of G", "augmentation p", "gradient norms", "fid10k"}
    result = invoke(plot_run.main, run)
    assert result.exit_code == 0, result.output
    with PIL.Image.open(run / "curves.png") as image:
        assert image.width == 2 * 560
    assert invoke(plot_run.main, run, run, f"--out={tmp_path / 'both.png'}").exit_code == 0
    assert "has no stats.jsonl" in refused(plot_run.main, tmp_path)
    assert "no run given" in refused(plot_run.main)
    assert "can't be written" in refused(plot_run.main, run, "--out=/nowhere/at/all.png")


def write_stats(run: Path, *lines: str) -> Path:
    """A run of whose stats.jsonl these are the lines."""
    run.mkdir(parents=True)
    (run / "stats.jsonl").write_text("".join(line + "\n" for line in lines))
    return run


def stats_line(kimg: float, loss: float) -> str:
    return json.dumps({"Progress/kimg": {"mean": kimg}, "Loss/G/loss": {"mean": loss}, "timestamp": 1.5})


def test_lines_are_called_by_the_shortest_that_tells_runs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a0, b0, c0 = (tmp_path / name for name in ("A/00000-x", "B/00000-x", "B/00000-y"))
    a1 = tmp_path / "A/00001-x"
    assert list(plot_run.labels([a0]).values()) == [""]
    assert list(plot_run.labels([a0, a1]).values()) == ["00000", "00001"]
    assert list(plot_run.labels([a0, c0, a1]).values()) == ["00000-x", "00000-y", "00001"]
    assert list(plot_run.labels([a0, b0, c0, a1]).values()) == [str(a0), str(b0), "00000-y", "00001"]
    drawn = {}
    monkeypatch.setattr(
        plot_run, "draw_panels", lambda panels, x_label: drawn.update(panels) or draw_panels(panels, "")
    )
    for number, run in enumerate((a0, c0)):
        write_stats(run, stats_line(1, number))
    assert invoke(plot_run.main, a0, c0).exit_code == 0
    assert drawn["loss of G"] == {"00000-x": [(1, 0)], "00000-y": [(1, 1)]}


def test_damaged_lines_of_statistics_are_passed_over(tmp_path: Path) -> None:
    damaged = ["null", "[1, 2]", "3", '"word"', "{}", '{"Progress/kimg": 2}', '{"Progress/kimg": {"mean": null}}']
    run = write_stats(tmp_path / "00000-x", stats_line(1, 5), *damaged, stats_line(2, 4)[:-9], stats_line(3, 3))
    with (run / "stats.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    assert plot_run.curves_of(run) == {"loss of G": {"": [(1, 5), (3, 3)]}}


class PretendedClient(types.ModuleType):
    """In place of wandb: remembers what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.began: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def init(self, **about: Any) -> "PretendedClient":
        self.began.append(about)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.began[-1]["finished"] = True

    def Histogram(self, np_histogram: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return np_histogram


def test_statistics_go_where_they_are_asked_to(
    patterns_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}", "--kimg=0.064"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "--wandb=ours needs the package wandb" in refused(train.main, *flags, "--wandb=ours")
    client = PretendedClient()
    monkeypatch.setitem(sys.modules, "wandb", client)
    assert invoke(train.main, *flags, "--wandb=ours").exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert invoke(train.main, f"--resume={run}", "--kimg=0.096").exit_code == 0
    assert [step for step, _ in client.lines] == [32, 64, 96]
    assert {about["id"] for about in client.began} == {client.began[0]["id"]}
    assert [about["finished"] for about in client.began] == [True, True]
    assert client.began[0]["id"] == (run / IDENTITY).read_text()
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    for line, (_, values) in zip(lines, client.lines, strict=True):
        assert values["Loss/G/loss"] == line["Loss/G/loss"]["mean"]
        counts, edges = values["Loss/scores/real (histogram)"]
        assert counts.sum() == line["Loss/scores/real"]["num"]
        assert len(edges) == len(counts) + 1
        assert line["Resources/host_memory_gb"]["mean"] > 0.1

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    assert "Loss/G/loss" in events.Tags()["scalars"]
    assert "Loss/scores/real (histogram)" in events.Tags()["histograms"]


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_nimg, last_nimg in ((1000, 4000), (3000, 6000)):  # killed at 4000, the state was of 2000
        writer = TensorBoard(tmp_path, first_nimg)
        for cur_nimg in range(first_nimg, last_nimg + 1, 1000):
            writer.tick({"loss": {"num": 1, "mean": float(first_nimg), "std": 0.0}}, cur_nimg)
        writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1000), (2, 1000), (3, 3000), (4, 3000), (5, 3000), (6, 3000)]


def test_a_service_that_cannot_be_had_ends_no_run(
    patterns_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = PretendedClient()
    monkeypatch.setitem(sys.modules, "wandb", client)
    monkeypatch.setattr(client, "init", lambda **about: client.no_such_key)
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}", "--kimg=0.032"]
    result = invoke(train.main, *flags, "--wandb=ours")
    assert result.exit_code == 0
    assert "--wandb=ours failed (AttributeError: " in result.output
    (run,) = (tmp_path / "runs").iterdir()

    # Without the package the run goes on when it is told to do without.
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert invoke(train.main, f"--resume={run}", "--kimg=0.064", "--wandb=none").exit_code == 0


def test_a_new_run_in_the_place_of_a_deleted_one_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = PretendedClient()
    monkeypatch.setitem(sys.modules, "wandb", client)
    run = tmp_path / "00000-digits"
    for _ in range(2):
        run.mkdir()
        WeightsAndBiases(run, "ours")
        shutil.rmtree(run)
    assert client.began[0]["id"] != client.began[1]["id"]
