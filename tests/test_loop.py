"""What the loop hands to a system, and what it asks of a machine that is taken away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_RUN, Refused, invoke

import train
from stylegan2_icgan.models import load_model
from torch_utils import training_stats
from training import loss, saving, training_loop
from training.augment import identity
from training.condition import Condition
from training.sampling import from_uint8, sample_images, to_uint8, z_from_seeds
from training.step import Step
from training.system import Phase, System

ROOT = Path(__file__).parents[1]


def test_every_step_and_phase_draws_its_own_noise_and_conditions(
    patterns_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Step]] = []
    run = System.run

    def watch(self: System, phase: Phase, rounds: list[Step]) -> None:
        seen.extend((phase.name, step) for step in rounds)
        run(self, phase, rounds)

    monkeypatch.setattr(System, "run", watch)
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--cond=instance", "--k=4", f"--outdir={tmp_path}", "--batch-gpu=4"]
    assert invoke(train.main, *flags, "--kimg=0.024").exit_code == 0
    assert [name for name, _ in seen] == ["Gmain"] * 2 + ["Dmain"] * 2 + ["Dreg"] * 2 + (
        ["Gmain"] * 2 + ["Dmain"] * 2
    ) * 2
    noise = torch.stack([step.z for _, step in seen])
    assert len(noise.unique(dim=0)) == len(seen)
    assert len(torch.stack([step.gen_cond.h for _, step in seen]).unique(dim=0)) == len(seen)
    reals = [step.real for name, step in seen if name == "Gmain"]
    assert len(torch.stack(reals).unique(dim=0)) == 6  # two rounds of three steps
    assert torch.equal(seen[0][1].real, seen[2][1].real)  # the phases of a step share its real images
    for _, step in seen:
        assert step.real.min() >= -1
        assert step.real.max() <= 1
        assert len(step.real) == len(step.real_cond) == len(step.z) == len(step.gen_cond) == 4


def test_a_state_is_saved_between_snapshots(
    patterns_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow machine snapshots are hours apart; a crash must not cost them."""
    saved: list[str] = []
    save = saving.save_state
    monkeypatch.setattr(saving, "save_state", lambda path, *rest: (saved.append(path.name), save(path, *rest)))
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--snap=100", "--kimg=0.16", "--tick=0.04"]
    assert invoke(train.main, *flags, f"--outdir={tmp_path / 'a'}").exit_code == 0
    assert len(saved) == 1
    monkeypatch.setattr(training_loop, "STATE_EVERY_SEC", 0.0)
    assert invoke(train.main, *flags, f"--outdir={tmp_path / 'b'}").exit_code == 0
    assert len(saved) == 1 + 4
    assert len(list(tmp_path.glob("b/*/network-snapshot-*.pt"))) == 1
    leftover = next(tmp_path.glob("b/*")) / ".training-state-000001.pt.1-ab.tmp"
    leftover.write_text("half")
    assert invoke(train.main, "--resume=latest", f"--outdir={tmp_path / 'b'}").exit_code == 0
    assert not leftover.exists()


def test_discriminator_is_shown_augmented_images_real_and_fake(patterns_zip: Path, tmp_path: Path) -> None:
    shown: list[int] = []

    def augment(images: torch.Tensor) -> torch.Tensor:
        shown.append(len(images))
        return identity(images)

    from test_system import make_step, small_system

    system = small_system()
    step = make_step(system)
    step = Step(step.networks, step.real, step.real_cond, step.z, step.gen_cond, augment)
    for phase, times in {"Gmain": 1, "Dmain": 2, "Dreg": 1}.items():
        shown.clear()
        system.run(next(p for p in system.phases if p.name == phase), [step])
        assert shown == [8] * times, phase


def test_mean_style_follows_training_and_truncation_uses_it(patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--kimg=0.4", f"--outdir={tmp_path}"]
    assert invoke(train.main, *flags).exit_code == 0
    (snapshot,) = tmp_path.glob("*/network-snapshot-000000.pt")
    model = load_model(snapshot, torch.device("cpu"))
    assert model.generator.mapping.w_avg.abs().max() > 0
    z = z_from_seeds(range(2), 8)
    condition = Condition.empty(2)
    images = sample_images(model.generator, z, condition, truncation_psi=0.0)
    assert torch.equal(images[0], images[1])  # psi 0 is the mean style, whatever z


def test_path_length_mean_moves_slowly() -> None:
    from test_system import make_step, small_system

    term = small_system(pl_weight=2.0).state["path_length"]
    assert isinstance(term, loss.PathLength)
    system = small_system(pl_weight=2.0)
    lengths = loss.path_lengths  # the first mean is a hundredth of the first lengths
    measured: list[torch.Tensor] = []

    def watch(*args: Any) -> torch.Tensor:
        measured.append(lengths(*args).detach().mean())
        return lengths(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "path_lengths", watch)
        term(make_step(system))
    term.settle(system.networks["G"])
    torch.testing.assert_close(term.mean, 0.01 * measured[0], rtol=1e-3, atol=1e-6)


def test_pixels_are_rounded_to_nearest_and_come_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert from_uint8(every).min() == -1
    assert from_uint8(every).max() == 1
    assert to_uint8(torch.tensor([-9.0, -1.0, 0.003, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(torch.tensor([-1 + 0.6 / 127.5, -1 + 0.4 / 127.5])).tolist() == [1, 0]


def test_statistics_of_a_state_move_to_where_values_are() -> None:
    """A state holds CPU tensors, a GPU reports its own; the meta device stands in for the GPU."""
    collector = training_stats.Collector()
    collector.load_state_dict({"a": torch.zeros(3, dtype=torch.float64)})
    training_stats.report("a", torch.ones(2, device="meta"))
    assert training_stats._moments["a"].device.type == "meta"
    training_stats.Collector()  # forgets them


class WithoutDoubles(torch.Tensor):
    """As on MPS: float64 is for the CPU alone."""

    def double(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_statistics_of_a_device_without_float64_are_read() -> None:
    collector = training_stats.Collector()
    training_stats.add("a", torch.tensor([2.0, 4.0, 10.0]).as_subclass(WithoutDoubles))
    assert collector.collect() == {"a": {"num": 2, "mean": 2.0, "std": 1.0}}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_with_loader_processes(
    patterns_zip: Path, tmp_path: Path, number: signal.Signals
) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--workers=2", "--cache=none", "--kimg=50", f"--outdir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags, "--snap=1000"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/stats.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert list(tmp_path.glob("*/training-state-*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 60_000, 200_000])
def test_a_full_disk_at_any_moment_is_one_line(patterns_zip: Path, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands in for the disk: sheets, log, snapshot and state run into it in turn."""
    code = (
        "import resource, sys, train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "train.main(sys.argv[2:])\n"
    )
    flags = [*TINY_RUN, "--channel-max=32", "--channel-base=512", f"--data={patterns_zip}", f"--outdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(limit), *flags, "--kimg=0.1"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "File too large" in done.stderr
    assert not list(tmp_path.glob("*/.*.tmp"))


def test_an_unwritable_outdir_is_refused_before_any_work(patterns_zip: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--cond=instance", "--k=4", f"--outdir={tmp_path / 'file' / 'runs'}"]
    assert "--outdir" in refused(train.main, *flags)
    assert not patterns_zip.with_name("patterns.instances").exists()
