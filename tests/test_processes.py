"""Several processes train one model: the same one as a single process, and they end together."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL, TINY_RUN, Refused, invoke, pattern_images, write_zip

import train
from torch_utils import distributed
from torch_utils.command_line import UserError
from training import agreement

ROOT = Path(__file__).parents[1]
FLAGS = [*TINY_MODEL, "--cfg=tiny", "--batch=24", "--batch-gpu=2", "--mbstd-group=2", "--tick=0.06", "--snap=1"]
FLAGS += ["--device=cpu", "--cond=instance", "--k=4", "--pl-weight=2", "--style-mixing=0.9", "--r1-interval=4"]
FLAGS += ["--aug=ada", "--ada-kimg=1", "--target=0.3"]


def run(arguments: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def state_of(outdir: Path) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(max(outdir.glob("*/training-state-*.pt")), weights_only=True)["members"]


def stats_of(outdir: Path) -> list[dict[str, Any]]:
    (file,) = outdir.glob("*/stats.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_machines(arguments: list[str]) -> list["subprocess.Popen[str]"]:
    """Each with a torchrun of its own, which meet at an address."""
    meeting = ["--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}", "--nproc-per-node=1"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *meeting, f"--node-rank={number}", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a run each: the `whole` and the `half` of it by one process, the half by `two`."""
    folder = tmp_path_factory.mktemp("processes")
    folders = {name: folder / name for name in ("whole", "half", "two")}
    data = f"--data={write_zip(folder / 'patterns.zip', *pattern_images(40))}"
    script = [str(ROOT / "train.py"), *FLAGS, data, "--kimg=0.12"]
    for process in two_machines([*script, f"--outdir={folders['two']}"]):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert invoke(train.main, *script[1:], f"--outdir={folders['whole']}").exit_code == 0
    shutil.copytree(folders["whole"], folders["half"])
    assert invoke(train.main, "--resume=latest", "--kimg=0.24", f"--outdir={folders['whole']}").exit_code == 0
    return folders


def assert_same(one: Path, other: Path) -> None:
    """Weights, what is adjusted in training, and all statistics but the cost."""
    ours, theirs = state_of(one), state_of(other)
    for name in ("G", "D", "G_ema"):
        for key, value in ours[name].items():
            if "w_avg" not in key:  # moves once a round of each process
                torch.testing.assert_close(theirs[name][key], value, rtol=1e-5, atol=1e-5, msg=f"{name}.{key}")
    torch.testing.assert_close(theirs["augment_pipe"], ours["augment_pipe"])
    torch.testing.assert_close(theirs["path_length"], ours["path_length"], rtol=1e-4, atol=1e-7)
    assert ours["augment_pipe"]["p"] > 0

    for line, other_line in zip(stats_of(one), stats_of(other), strict=True):
        assert line.keys() == other_line.keys()
        for name in line.keys() - {"timestamp"}:
            if not name.startswith(("Timing/", "Resources/")):
                assert other_line[name]["mean"] == pytest.approx(line[name]["mean"], rel=1e-4, abs=1e-5), name
            if name.startswith(("Loss/scores/", "Loss/signs/", "Loss/D/", "Loss/G/", "Loss/r1")):  # of each image
                assert other_line[name]["num"] == line[name]["num"], name
            if "histogram" in line[name]:
                assert sum(other_line[name]["histogram"]) == line[name]["num"], name


@pytest.mark.slow
def test_two_machines_are_one_process(runs: dict[str, Path]) -> None:
    assert_same(runs["half"], runs["two"])

    # Means of the same styles, which fewer rounds weigh a little differently; half of the styles are a tenth off.
    steps, rounds = 5, 12
    own, common = (state_of(runs[name])["G"]["mapping.w_avg"] for name in ("half", "two"))
    own, common = own / (1 - 0.995 ** (steps * rounds)), common / (1 - 0.995 ** (steps * rounds / 2))
    assert (common - own).norm() < 0.02 * own.norm()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3, 4])
def test_a_state_of_two_processes_continues_with_another_number(
    processes: int, runs: dict[str, Path], tmp_path: Path
) -> None:
    outdir = shutil.copytree(runs["two"], tmp_path / "runs")
    rest = ["--resume=latest", "--kimg=0.24", f"--outdir={outdir}"]
    if processes == 1:
        assert invoke(train.main, *rest).exit_code == 0
    else:
        result = run([str(ROOT / "train.py"), *rest, f"--gpus={processes}"])
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("Continuing at 0.1 kimg") == 1  # one of them speaks
    assert_same(runs["whole"], outdir)


def two_processes(arguments: list[str]) -> list["subprocess.Popen[str]"]:
    """They meet by environment variables alone, as on two machines, with nobody to watch them."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


@pytest.mark.slow
def test_one_that_is_killed_ends_all_and_is_named(patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, f"--data={patterns_zip}", f"--outdir={tmp_path}", "--kimg=1000"]
    both = two_processes([str(ROOT / "train.py"), *flags])
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/training-state-*.pt")) and time.monotonic() < deadline:
            assert all(process.poll() is None for process in both)
            time.sleep(0.1)
        both[1].kill()
        start = time.monotonic()
        _, errors = both[0].communicate(timeout=60)
        assert time.monotonic() - start < 60
    finally:
        for process in both:
            process.kill()
    assert both[0].returncode == 2, errors
    line = next(line for line in errors.splitlines() if line.startswith("Error: "))
    assert re.match(r"Error: rank 1 of the 2 processes \(0 to 1\) has left; .*--resume=", line), errors


DRIFTING = """
import os, sys, train
from training.system import System

run = System.run

def run_and_drift(system, phase, rounds):
    run(system, phase, rounds)
    if os.environ["RANK"] == "1":
        next(system.networks["D"].parameters()).data *= 1 + 1e-6

System.run = run_and_drift
sys.exit(train.main())
"""


@pytest.mark.slow
def test_one_whose_weights_drift_ends_all_and_is_named(patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--outdir={tmp_path}", "--kimg=0.1"]
    for process in two_processes(["-c", DRIFTING, *flags]):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert "the weights of D differ between rank 0 and rank 1: nothing more is saved" in errors
    assert not list(tmp_path.glob("*/training-state-*.pt"))


def test_batches_that_do_not_come_out_even_are_refused_before_anybody_waits(
    patterns_zip: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    data = f"--data={patterns_zip}"
    assert "--batch=16 is not a multiple of the 3 processes" in refused(train.main, data, "--cfg=tiny", "--batch=16")
    line = refused(train.main, data, "--cfg=tiny", "--batch=24", "--batch-gpu=3")
    assert "--batch=24 (8 for each of 3 processes) is not a multiple of --batch-gpu=3" in line
    assert "--mbstd-group=3" in refused(train.main, data, "--cfg=tiny", "--batch=24", "--mbstd-group=3")
    monkeypatch.setenv("RANK", "1")
    result = run([str(ROOT / "train.py"), data, "--batch=16"])
    assert result.stderr.startswith("Error: rank 1: --batch=16")


def test_weights_that_differ_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [torch.nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    assert agreement.fingerprint(networks[0]) == agreement.fingerprint(networks[1])
    with torch.no_grad():
        networks[1].weight.swapaxes(0, 1)[0].mul_(1 + 1e-7)
    prints = [agreement.fingerprint(network) for network in networks]
    assert prints[0] != prints[1]
    monkeypatch.setattr(agreement, "world_size", lambda: 2)
    monkeypatch.setattr(agreement, "gather", lambda mine, brisk: [mine, mine | {"D": prints[1]}])
    with pytest.raises(UserError, match="weights of D differ between rank 0 and rank 1"):
        agreement.check_equal_weights({"G": networks[0], "D": networks[0]})


def test_first_process_decides_and_its_mistake_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.first(lambda: 3) == 3
    with pytest.raises(UserError, match="no such thing"):
        distributed.first(lambda: (_ for _ in ()).throw(UserError("no such thing")))
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "broadcast", lambda mine: (None, "what rank 0 said"))
    with pytest.raises(UserError, match="what rank 0 said"):
        distributed.first(lambda: pytest.fail("only the first one works"))
