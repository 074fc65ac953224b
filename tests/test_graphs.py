"""Recorded passes: the gradients, statistics and states of eager ones.

There are no CUDA graphs on a CPU. A stand-in records there what a graph would: the operations, with the tensors that
they read and write. Replayed, it knows nothing of Python; what a phase decides on the host would show as wrong numbers.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_RUN, Refused, invoke
from test_system import SHAPE, SMALL
from torch.utils._python_dispatch import TorchDispatchMode

import train
from stylegan2_icgan.models import make_system
from stylegan2_icgan.options import resolve
from stylegan2_icgan.systems import SYSTEMS
from torch_utils import training_stats
from torch_utils.command_line import UserError
from training import graphs
from training.augment import Augmentation, AugmentOptions
from training.checkpoint import Recipe
from training.condition import Condition
from training.ema import Ema
from training.step import Step
from training.system import System

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# The host waits for the device, or hands it numbers of its own: neither can be recorded.
HOSTS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::lift_fresh"}


class Tape(TorchDispatchMode):
    """Records operations; `replay` does them again where they were done."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.of_host: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in HOSTS:
            self.of_host.append(func._schema.name)
        read = {t.untyped_storage().data_ptr() for t in tensors_in([*args, *(kwargs or {}).values()])}
        made = tensors_in([result])
        is_view = made and all(t.untyped_storage().data_ptr() in read for t in made) and not func._schema.is_mutable
        if not is_view:
            self.entries.append((func, args, kwargs or {}, made))
        return result

    def replay(self) -> None:
        for func, args, kwargs, made in self.entries:
            again = tensors_in([func(*args, **kwargs)])
            if not func._schema.is_mutable:
                for old, new in zip(made, again, strict=True):
                    old.copy_(new)


def tensors_in(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [t for value in values for t in tensors_in(value)] if isinstance(values, list | tuple) else []


def tape_recording(work: graphs.Work, pool: Any) -> graphs.Work:
    work()
    with Tape() as tape:
        work()
    assert tape.of_host == []
    replay: graphs.Work = torch.no_grad()(tape.replay)
    return replay


def make(name: str, aug: str, device: torch.device) -> tuple[System, Augmentation]:
    small = {**SMALL, "pl_weight": 2.0, "r1_interval": 2, "style_mixing": 0.5}
    options = resolve("tiny", small, 8)
    system = make_system(Recipe(name, options.json()["model"], SHAPE, {}), seed=0)
    for network in system.networks.values():
        network.to(device).train()
    return system, Augmentation(AugmentOptions(aug, p=0.4, ada_kimg=0.1), mirror=True).to(device)


def rounds(system: System, augment: Augmentation, key: tuple[int, int], count: int) -> list[Step]:
    """Of a step, other ones for every key (step, phase)."""
    device = next(system.networks["G"].parameters()).device
    torch.manual_seed(key[0])
    made = []
    for part in range(count):
        real, z = torch.randn(4, 1, 8, 8, device=device), torch.randn(4, 6, device=device)
        c, h = torch.eye(3, device=device)[torch.randint(3, (4,))], torch.randn(4, 5, device=device)
        conditions = Condition(c, h), Condition(c.flip(0), h.flip(0))
        given = (system.networks, real, conditions[0], z, conditions[1], augment, augment.observe)
        made.append(Step(*given, key=(*key, part)))
    return made


def train_a_little(recorded: bool, aug: str, count: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Everything that has a memory after five steps of `count` rounds."""
    system, augment = make("stylegan2", aug, device)
    collector = training_stats.Collector()
    if recorded:
        graphs.record(system)
    for number in range(5):
        for index, phase in enumerate(system.phases):
            if phase.due(number):
                system.run(phase, rounds(system, augment, (number, index), count))
        augment.end_step(8)
    found = {name: torch.tensor([row["num"], row["mean"], row["std"]]) for name, row in collector.collect().items()}
    for name, member in (system.stateful() | augment.stateful()).items():
        state = member.state_dict()
        if "optimizer" in name:
            state = {f"{i}.{key}": value for i, row in state["state"].items() for key, value in row.items()}
        found |= {f"{name}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return found


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert len(found) > 100
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize(
    # Of several rounds gradients are summed in another order.
    ("aug", "count", "tolerance"),
    [("noaug", 1, 0), ("ada", 1, 0), ("diffaug", 1, 0), ("ada", 2, 1e-4)],
)
def test_recorded_phases_train_as_eager_ones(
    aug: str, count: int, tolerance: float, replayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train_a_little(False, aug, count, CPU)
    if replayed:
        monkeypatch.setitem(graphs.RECORDERS, "cpu", tape_recording)
    assert_near(train_a_little(True, aug, count, CPU), expected, tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("aug", ["noaug", "ada", "diffaug"])
def test_cuda_graphs_train_as_eager_phases(aug: str) -> None:
    assert_near(train_a_little(True, aug, 2, CUDA), train_a_little(False, aug, 2, CUDA), 1e-3)


def test_a_step_reads_nothing_from_the_device() -> None:
    """The whole of it: phases, optimisers, guard, statistics, ADA and the average generator."""
    system, augment = make("stylegan2", "ada", CPU)
    ema = Ema(system.networks["G"], 10, 0.05)
    with Tape() as tape:
        for number in range(4):
            for index, phase in enumerate(system.phases):
                if phase.due(number):
                    system.run(phase, rounds(system, augment, (number, index), 2))
            system.merge_buffers()
            augment.end_step(8)
            ema.update(system.networks["G"], 8 * number, 8)
    assert set(tape.of_host) <= {"aten::lift_fresh"}  # constants, once


def test_tape_does_not_know_what_the_host_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in can fail: a term that decides on the host gives other numbers."""
    monkeypatch.setitem(graphs.RECORDERS, "cpu", tape_recording)
    results = []
    for recorded in (False, True):
        system, augment = make("stylegan2", "noaug", CPU)
        calls = []
        for term in system.phases[0].terms:
            term.generate.prob = 0.0  # type: ignore[attr-defined]
            own = term.generate.styles  # type: ignore[attr-defined]
            monkeypatch.setattr(
                term.generate, "styles", lambda *a, own=own, calls=calls: (calls.append(0), own(*a) * len(calls))[1]
            )
        if recorded:
            graphs.record(system)
        for number in range(3):
            system.run(system.phases[0], rounds(system, augment, (number, 0), 1))
        results.append(torch.cat([p.detach().flatten() for p in system.networks["G"].parameters()]))
    assert not torch.allclose(*results, rtol=1e-5)


def test_graphs_are_refused_where_there_are_none(patterns_zip: Path, tmp_path: Path, refused: Refused) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}", "--graphs"]
    message = refused(train.main, *flags)
    assert "--graphs: there are no CUDA graphs on cpu; leave it out (of a run that goes on: --no-graphs)" in message
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="--graphs: the passes of biggan can't be recorded; leave it out"):
        graphs.check_graphs("biggan", SYSTEMS["biggan"], CUDA)
    graphs.check_graphs("stylegan2", SYSTEMS["stylegan2"], CUDA)


def test_a_run_with_recorded_phases_is_one_without(
    patterns_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line: what --graphs hands to the loop, with passes that are done anew."""
    states = []
    for name, flags in (("eager", ()), ("recorded", ("--graphs",))):
        if flags:
            monkeypatch.setitem(graphs.RECORDERS, "cpu", lambda work, pool: work)
        outdir = tmp_path / name
        run = [*TINY_RUN, f"--data={patterns_zip}", "--kimg=0.064", f"--outdir={outdir}", *flags]
        assert invoke(train.main, *run).exit_code == 0
        (state,) = outdir.glob("*/training-state-*.pt")
        states.append(torch.load(state, weights_only=True)["members"])
    eager, recorded = states
    for name in ("G", "D", "G_ema"):
        for key, value in eager[name].items():
            assert torch.equal(recorded[name][key], value), f"{name}.{key}"
    assert eager["stats"].keys() == recorded["stats"].keys()
