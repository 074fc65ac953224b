"""Benchmarks of steps, generation, ops and everything on a GPU: do they run, compare and fail as they say?"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import invoke

from benchmarks import generate, gpu_parts, gpu_suite, ops, step
from torch_utils import custom_ops

# In place of a published checkout: its layout and its names, and next to no arithmetic.
NETWORKS = """
import torch
class Mapping(torch.nn.Module):
    def __init__(self, z_dim, w_dim):
        super().__init__()
        self.fc = torch.nn.Linear(z_dim, w_dim)
    def forward(self, z, *rows):
        return self.fc(z)
class Synthesis(torch.nn.Module):
    def __init__(self, w_dim, side):
        super().__init__()
        self.fc, self.side = torch.nn.Linear(w_dim, 3), side
    def forward(self, w, noise_mode="random"):
        return self.fc(w)[:, :, None, None].expand(-1, -1, self.side, self.side)
class Generator(torch.nn.Module):
    def __init__(self, z_dim, c_dim, HERE w_dim, img_resolution, img_channels, mapping_kwargs, synthesis_kwargs):
        super().__init__()
        assert set(synthesis_kwargs) == {"channel_base", "channel_max", "num_fp16_res", "conv_clamp"}
        self.mapping, self.synthesis = Mapping(z_dim, w_dim), Synthesis(w_dim, img_resolution)
    def forward(self, z, *rows, noise_mode="random"):
        return self.synthesis(self.mapping(z, *rows), noise_mode)
class Discriminator(torch.nn.Module):
    def __init__(self, c_dim, HERE img_resolution, img_channels, channel_base, channel_max, num_fp16_res, conv_clamp,
                 mapping_kwargs, epilogue_kwargs):
        super().__init__()
        self.fc = torch.nn.Linear(3, 1)
    def forward(self, img, *rows):
        return self.fc(img.mean(dim=[2, 3]))
"""
LOSS = """
class StyleGAN2Loss:
    def __init__(self, device, G_mapping, G_synthesis, D, style_mixing_prob, r1_gamma, pl_weight):
        self.mapping, self.synthesis, self.D = G_mapping, G_synthesis, D
    def accumulate_gradients(self, phase, real_img, real_c, HERE gen_z, gen_c, GEN sync, gain):
        fake = self.synthesis(self.mapping(gen_z, gen_c))
        (self.D(fake).mean() * gain if phase[0] == "G" else self.D(real_img).mean() * gain).backward()
"""


def write_checkout(folder: Path, takes_h: bool) -> Path:
    (folder / "training").mkdir(parents=True)
    (folder / "training" / "__init__.py").touch()  # as published; without it ours, where it is installed, goes first
    (folder / "training" / "networks.py").write_text(NETWORKS.replace("HERE", "h_dim," if takes_h else ""))
    loss = LOSS.replace("HERE", "real_h," if takes_h else "").replace("GEN", "gen_h," if takes_h else "")
    (folder / "training" / "loss.py").write_text(loss)
    return folder


@pytest.fixture(autouse=True)
def _reference_again():
    yield
    custom_ops.set_mode("ref")


def test_step_measures_every_phase_in_every_mode_and_precision(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    flags = ("--network=toy", "--device=cpu", "--ops=native,ref", "--repeats=1", "--aug=ada", "--batch=2")
    result = invoke(step.main, *flags, f"--out={out}")
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert set(found["rows"]) == {"native fp32", "ref fp32"}
    for row in found["rows"].values():
        assert set(row["sec"]) == {"Gmain", "Greg", "Dmain", "Dreg"}
        sec = row["sec"]
        assert row["step_sec"] == pytest.approx(sec["Gmain"] + sec["Greg"] / 4 + sec["Dmain"] + sec["Dreg"] / 16)
        assert row["images_per_sec"] == pytest.approx(2 / row["step_sec"])
        assert row["peak_mib"] > 50
    assert found["torch"] == torch.__version__


def test_step_is_compared_with_a_published_checkout(tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path / "peer", takes_h=True)
    flags = ("--network=toy", "--device=cpu", "--ops=ref", "--repeats=1", f"--peer={checkout}", "--cond=instance")
    result = invoke(step.main, *flags, f"--out={tmp_path / 'out.json'}")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    ratio = rows["peer fp32"]["step_sec"] / rows["ref fp32"]["step_sec"]
    assert rows["ref fp32"]["times_faster_than_peer"] == pytest.approx(ratio)
    assert 0 < ratio < 0.9  # that peer has nothing to do
    assert f"ref fp32: {ratio:.2f} times faster than the peer" in result.output


def test_peers_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path / "peer", takes_h=False)
    flags = ("--network=toy", "--device=cpu", "--ops=ref", "--repeats=1")
    for more, message in (
        ((f"--peer={tmp_path}",), f"--peer={tmp_path}: expected a checkout whose training/ has"),
        ((f"--peer={checkout}",), "its networks take no instance features; use --cond=none"),
        ((f"--peer={checkout}", "--network=biggan-tiny"), "--peer: it can't train biggan-tiny in fp32; expected"),
    ):
        result = invoke(step.main, *flags, *more)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert "'fp64' is not one of fp32" in invoke(step.main, "--network=toy", "--precision=fp64").stderr
    assert "no float16 arithmetic on cpu" in invoke(step.main, *flags, "--precision=fp16").stderr
    for main in (step.main, generate.main):
        assert "0 is not in the range x>=1" in invoke(main, *flags, "--rounds=0").stderr


def test_generation_is_measured_and_compared(tmp_path: Path) -> None:
    checkout, out = write_checkout(tmp_path / "peer", takes_h=False), tmp_path / "generate.json"
    flags = ("--network=toy", "--device=cpu", "--ops=ref", "--repeats=1", "--batch=1,4", "--cond=none")
    result = invoke(generate.main, *flags, f"--peer={checkout}", f"--out={out}")
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"toy ref fp32", "toy peer fp32"}
    for row in rows.values():
        assert row["images_per_sec"]["4"] == pytest.approx(4 / row["sec"]["4"])
    assert rows["toy ref fp32"]["images_per_sec"]["4"] > rows["toy ref fp32"]["images_per_sec"]["1"]


def test_ops_are_measured_against_a_copy_of_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "OPERATIONS", {"down 2": ops.OPERATIONS["down 2"]})
    custom_ops.set_mode("native")
    found = ops.run_all(torch.device("cpu"), quick=True, shape=[2, 8, 16, 16])
    assert len(found["rows"]) == 18
    for row in found["rows"]:
        assert row["times"] == pytest.approx(row["native_ms"] / row["floor_ms"])
    assert ops.copy_work(4096, torch.device("cpu"))().numel() == 512  # type: ignore[attr-defined]


def test_the_suite_says_in_one_line_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)  # other tests have asked for a GPU
    result = invoke(gpu_suite.main)
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: --device=cuda: there is no GPU here; --device=cpu --quick asks the same at toy size\n"
    )


def test_a_part_that_fails_hangs_or_dies_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(device: torch.device, quick: bool) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def hang(device: torch.device, quick: bool) -> dict[str, Any]:
        (tmp_path / "pid").write_text(str(subprocess.Popen(["sleep", "60"]).pid))
        time.sleep(60)
        return {}

    monkeypatch.setattr(custom_ops, "_found", {})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/dev/null")  # the library can't be had there
    monkeypatch.setitem(gpu_suite.PARTS, "loader", gpu_parts.Part(die, 30))
    monkeypatch.setitem(gpu_suite.PARTS, "generate", gpu_parts.Part(hang, 3))
    out = tmp_path / "suite.json"
    names = ("build", "loader", "generate", "floor", "nan-guard", "processes")
    result = invoke(gpu_suite.main, "--device=cpu", "--quick", f"--out={out}", *(f"--only={name}" for name in names))
    assert result.exit_code == 1
    found = json.loads(out.read_text())
    parts = found["parts"]
    assert "name another folder in TORCH_EXTENSIONS_DIR" in parts["build"]["error"]
    assert "ended with -9" in parts["loader"]["error"]
    assert "not done after 3 s" in parts["generate"]["error"]
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}/exe").exists()  # what it started is gone, too
    assert "there are no native ops, see build" in parts["floor"]["error"]
    assert parts["nan-guard"]["ok"]
    assert parts["nan-guard"]["ops"] == "ref"
    assert parts["processes"]["result"]["backend"] == "gloo"
    assert found["device"] == "cpu"
    assert found["packages"]["numpy"]
    assert "nan-guard" in result.output


@pytest.mark.parametrize("name", [name for name in gpu_parts.PARTS if name not in ("floor", "compiled", "step-tf32")])
def test_every_part_runs_at_toy_size(name: str) -> None:
    result = gpu_suite.run_here(name, torch.device("cpu"), quick=True)
    assert json.loads(json.dumps(result)) == result
    assert result


@pytest.mark.slow
def test_compilation_runs_at_toy_size() -> None:
    result = gpu_suite.run_here("compiled", torch.device("cpu"), quick=True)
    assert set(result) == {"generate", "D", "generate_compiled", "D_compiled"}
