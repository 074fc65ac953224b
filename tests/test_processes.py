"""Several processes train one model: the same one as a single process, and they end together."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_MODEL, Refused

import train
from torch_utils import distributed
from torch_utils.command_line import UserError
from training import agreement

ROOT = Path(__file__).parents[1]
FLAGS = [*TINY_MODEL, "--cfg=tiny", "--batch=12", "--batch-gpu=2", "--mbstd-group=2", "--tick=0.06", "--snap=1"]
FLAGS += [
    "--device=cpu",
    "--cond=instance",
    "--k=4",
    "--pl-weight=2",
    "--style-mixing=0.9",
    "--aug=ada",
    "--ada-kimg=1",
]


def run(arguments: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def state_of(outdir: Path) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(max(outdir.glob("*/training-state-*.pt")), weights_only=True)["members"]


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


@pytest.mark.slow
def test_two_machines_then_three_processes_are_one(patterns_zip: Path, tmp_path: Path) -> None:
    script, data = str(ROOT / "train.py"), f"--data={patterns_zip}"
    whole = run([script, *FLAGS, data, "--kimg=0.24", f"--outdir={tmp_path / 'one'}"])
    assert whole.returncode == 0, whole.stderr
    several = f"--outdir={tmp_path / 'several'}"
    for process in two_machines([script, *FLAGS, data, "--kimg=0.12", several]):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    rest = run([script, "--resume=latest", "--kimg=0.24", several, "--gpus=3"])
    assert rest.returncode == 0, rest.stderr
    assert rest.stdout.count("Continuing at 0.1 kimg") == 1  # one of them speaks

    one, other = state_of(tmp_path / "one"), state_of(tmp_path / "several")
    for name in ("G", "D", "G_ema"):
        for key, value in one[name].items():
            if "w_avg" not in key:  # moves once a round of each process
                torch.testing.assert_close(other[name][key], value, rtol=1e-5, atol=1e-5, msg=f"{name}.{key}")
    torch.testing.assert_close(other["augment_pipe"], one["augment_pipe"])
    torch.testing.assert_close(other["path_length"], one["path_length"], rtol=1e-4, atol=1e-7)
    assert one["augment_pipe"]["p"] > 0


@pytest.mark.slow
def test_one_that_is_killed_ends_all_and_is_named(patterns_zip: Path, tmp_path: Path) -> None:
    """Two processes that meet by environment variables alone, as on two machines, with nobody to watch them."""
    command = [sys.executable, str(ROOT / "train.py"), *FLAGS, f"--data={patterns_zip}", "--kimg=1000"]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [*command, f"--outdir={tmp_path}"],
            env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
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
