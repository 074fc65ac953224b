"""Gradients that are not finite: no step is taken, they are counted, and too many in a row end the run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BIGGAN, TINY_RUN, Refused, invoke

import train
from torch_utils import training_stats
from torch_utils.command_line import UserError
from training import loss, training_loop
from training.checkpoint import check_finite
from training.guard import Guard
from training.rounds import Rounds
from training.step import Step
from training.system import System

TINY_LOOP = ["--batch=8", "--tick=0.032", "--device=cpu"]


def step(guard: Guard, network: torch.nn.Linear, optimizer: torch.optim.Optimizer, value: float) -> None:
    network.weight.grad = torch.full_like(network.weight, 1.0)
    network.bias.grad = torch.full_like(network.bias, value)
    guard.step("Gmain", "G", network, optimizer)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_step_changes_nothing(fused: bool, bad: float) -> None:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters(), fused=fused)
    guard, collector = Guard(), training_stats.Collector()
    step(guard, network, optimizer, 1.0)
    before = [p.clone() for p in network.parameters()]
    moments = {key: value.clone() for key, value in optimizer.state[network.weight].items()}
    step(guard, network, optimizer, bad)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    assert all(torch.equal(optimizer.state[network.weight][key], value) for key, value in moments.items())
    step(guard, network, optimizer, 1.0)
    assert not torch.equal(network.weight, before[0])
    stats = collector.collect()
    assert stats["Gradients/bad_steps"]["num"] == 3
    assert stats["Gradients/bad_steps"]["mean"] == pytest.approx(1 / 3)
    assert stats["Gradients/Gmain"]["num"] == 2  # norms that are no numbers are left out
    assert stats["Gradients/Gmain"]["mean"] == pytest.approx(6**0.5)


def test_only_bad_steps_in_a_row_end_a_run_and_the_first_tensor_is_named() -> None:
    network = torch.nn.Linear(2, 2)
    optimizer, guard = torch.optim.Adam(network.parameters(), fused=True), Guard()
    for value in (float("nan"), float("nan"), 1.0, float("nan"), float("nan")):
        step(guard, network, optimizer, value)
        guard.check(limit=3)
    network.weight.grad = torch.full_like(network.weight, float("nan"))  # more of them are bad now: bias was first
    guard.step("Gmain", "G", network, optimizer)
    with pytest.raises(UserError, match=r"gradients of G were not finite in 3 steps in a row, bias first"):
        guard.check(limit=3)


def test_a_run_that_diverges_stops_and_its_last_state_is_good(
    patterns_zip: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loss.d_logistic_real
    monkeypatch.setattr(
        loss, "d_logistic_real", lambda step: real(step) * (float("nan") if step.cur_nimg >= 80 else 1.0)
    )
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--kimg=0.4", "--max-bad-steps=4", f"--outdir={tmp_path / 'runs'}"]
    line = refused(train.main, *flags)
    assert "gradients of D were not finite in 4 steps in a row, b8." in line
    (run,) = (tmp_path / "runs").iterdir()
    last = max(run.glob("training-state-*.pt"))
    content = torch.load(last, weights_only=True)
    assert 80 <= content["progress"]["cur_nimg"] <= 80 + 4 * 8
    check_finite({name: content["members"][name] for name in ("G", "D", "G_ema")})
    monkeypatch.setattr(loss, "d_logistic_real", real)
    assert invoke(train.main, f"--resume={run}").exit_code == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert sum(line["Gradients/bad_steps"]["mean"] > 0 for line in lines) == 1
    assert lines[-1]["Gradients/bad_steps"]["mean"] == 0


@pytest.mark.parametrize("model", [TINY_RUN, [*TINY_BIGGAN, *TINY_LOOP]], ids=["stylegan2", "biggan"])
def test_one_bad_batch_leaves_nothing_behind(
    patterns_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: list[str]
) -> None:
    of = Rounds.of

    def once(self: Rounds, *given: Any) -> list[Step]:
        z = torch.inf if given[-1] == 80 else 0.0
        return [dataclasses.replace(step, z=step.z + z) for step in of(self, *given)]

    monkeypatch.setattr(Rounds, "of", once)
    monkeypatch.setattr(training_loop, "STATE_EVERY_SEC", 0.0)
    flags = [*model, f"--data={patterns_zip}", "--kimg=0.16", "--snap=100", f"--outdir={tmp_path / 'runs'}"]
    result = invoke(train.main, *flags)
    assert result.exit_code == 0, result.output
    (run,) = (tmp_path / "runs").iterdir()
    for state in run.glob("training-state-*.pt"):
        members = torch.load(state, weights_only=True)["members"]
        check_finite({name: members[name] for name in ("G", "D", "G_ema")})
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert sum(line["Gradients/bad_steps"]["mean"] > 0 for line in lines) == 1


def test_no_state_is_saved_of_weights_that_are_not_finite(
    patterns_zip: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: System) -> None:
        self.networks["G"].mapping.w_avg.fill_(torch.nan)  # type: ignore[operator, union-attr]

    monkeypatch.setattr(System, "merge_buffers", spoil)
    monkeypatch.setattr(training_loop, "STATE_EVERY_SEC", 0.0)
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--kimg=0.16", "--snap=100", f"--outdir={tmp_path / 'runs'}"]
    assert "G.mapping.w_avg is not finite: nothing more is saved" in refused(train.main, *flags)
    assert not list(tmp_path.glob("runs/*/training-state-*.pt"))


def test_weights_that_are_not_finite_are_not_saved() -> None:
    with pytest.raises(UserError, match=r"G\.mapping\.w_avg is not finite"):
        check_finite({"D": {"x": torch.zeros(2)}, "G": {"step": 3, "mapping.w_avg": torch.tensor([0, float("inf")])}})
