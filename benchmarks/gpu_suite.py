"""Everything that a GPU should be asked, in one command and eight minutes at most.

    python -m benchmarks.gpu_suite                        benchmarks/results/<device>.json
    python -m benchmarks.gpu_suite --only=step-fp16
    python -m benchmarks.gpu_suite --device=cpu --quick   the same questions at toy size, where there is no GPU

Each part (benchmarks/gpu_parts.py) runs in a process of its own with a limit of its own, and the file is written after
each: one that fails, hangs or takes the memory of the GPU costs no other. The exit code is 1 where a part failed.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.gpu_parts import PARTS
from benchmarks.timing import RESULTS, machine, write_json
from torch_utils import custom_ops
from torch_utils.command_line import Command, UserError
from torch_utils.misc import keep_large_buffers

ROOT = Path(__file__).resolve().parents[1]
MOST_SEC = 460.0  # of the whole suite


def run_part(name: str, device: str, quick: bool, limit: float) -> dict[str, Any]:
    """What a part's process said; never raises."""
    command = [sys.executable, "-m", "benchmarks.gpu_suite", f"--part={name}", f"--device={device}"]
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command + ["--quick"] * quick, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "wall_sec": limit, "error": f"not done after {limit:.0f} s"}
    facts = {"ok": done.returncode == 0, "wall_sec": time.perf_counter() - began}
    if done.returncode != 0:
        return facts | {"error": done.stderr[-2000:]}
    return facts | {"result": json.loads(done.stdout.splitlines()[-1])}


def run_here(name: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """A part in this process."""
    keep_large_buffers()
    if device.type == "cpu":
        torch.set_num_threads(1)
    custom_ops.set_mode("native")
    custom_ops.prepare(device)
    return PARTS[name][0](device, quick)


def check_device(device: str) -> torch.device:
    """
    Raises:
        UserError: there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: there is no GPU here; --device=cpu --quick asks the same at toy size")
    return torch.device(device)


@click.command(cls=Command, help=__doc__)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="Toy sizes: does everything run?")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Some of the parts.")
@click.option("--out", type=Path, help="[default: benchmarks/results/<device>.json]", metavar="FILE")
@click.option("--part", type=click.Choice(list(PARTS)), hidden=True, help="One part, here; its JSON is the last line.")
def main(device: str, quick: bool, only: tuple[str, ...], out: Path | None, part: str | None) -> int:
    where = check_device(device)
    if part is not None:
        click.echo(json.dumps(run_here(part, where, quick)))
        return 0
    facts = machine(where) | {"quick": quick}
    path = out or RESULTS / f"{facts['device'].lower().replace(' ', '-')}{'-quick' if quick else ''}.json"
    parts: dict[str, Any] = {}
    began = time.perf_counter()
    for name in only or PARTS:
        left = MOST_SEC - (time.perf_counter() - began)
        if left < 10:
            parts[name] = {"ok": False, "error": "left out: the time was used up"}
        else:
            parts[name] = run_part(name, device, quick, min(PARTS[name][1], left))
        state = "ok" if parts[name]["ok"] else parts[name]["error"].strip().splitlines()[-1]
        click.echo(f"{name:<20}{parts[name].get('wall_sec', 0.0):>7.1f} s  {state}")
        write_json(path, facts | {"wall_sec": time.perf_counter() - began, "parts": parts})
    click.echo(f"written: {path}")
    return 0 if all(row["ok"] for row in parts.values()) else 1


if __name__ == "__main__":
    main()
