"""Everything that a GPU should be asked, in one command and eight minutes at most.

    python -m benchmarks.gpu_suite                        benchmarks/results/<device>.json
    python -m benchmarks.gpu_suite --only=step-fp16
    python -m benchmarks.gpu_suite --device=cpu --quick   the same questions at toy size, where there is no GPU

Each part (benchmarks/gpu_parts.py) runs in a process of its own with a limit of its own, and the file is written after
each: one that fails, hangs or takes the memory of the GPU costs no other. The processes are forked, so that Python and
torch are loaded once; this one never touches the GPU. Where forks can't use it, each loads for itself. Without native
ops the parts that need them are left out and the others compute by the reference. The exit code is 1 where a part
failed or was left out.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy
import PIL
import psutil
import safetensors
import scipy
import torch
import torch._dynamo  # optimisers load it, which takes seconds: once, not in every process
import torchvision

from benchmarks.gpu_parts import PARTS
from benchmarks.timing import RESULTS, machine, write_json
from torch_utils import custom_ops
from torch_utils.command_line import Command, UserError
from torch_utils.misc import keep_large_buffers

MOST_SEC = 460.0  # of the whole suite
PACKAGES = (numpy, PIL, psutil, safetensors, scipy, torchvision)  # whose versions are written down


def in_process(work: Callable[[], Any], limit: float, method: str = "fork") -> dict[str, Any]:
    """What the work returned, or why it did not, in a process that is killed with all it started after `limit` seconds.

    Returns:
        ok, wall_sec, and result or error.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result, said = Path(folder) / "result", Path(folder) / "said"
        process = multiprocessing.get_context(method).Process(target=_process, args=(work, result, said))
        process.start()
        process.join(limit)
        in_time = not process.is_alive()
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # workers and compilers, too
        process.join()
        facts = {"ok": in_time and process.exitcode == 0, "wall_sec": time.perf_counter() - began}
        if facts["ok"]:
            return facts | {"result": json.loads(result.read_text())}
        last = said.read_text(errors="replace")[-2000:] if said.exists() else ""
        end = f"not done after {limit:.0f} s" if not in_time else f"ended with {process.exitcode}"
        return facts | {"error": f"{last}\n{end}" if not in_time or process.exitcode != 1 else last}


def _process(work: Callable[[], Any], result: Path, said: Path) -> None:
    os.setsid()
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        result.write_text(json.dumps(work()))
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)  # as it was forked, nothing is to be tidied up


def run_here(name: str, device: torch.device, quick: bool, mode: str = "native") -> dict[str, Any]:
    """A part in this process."""
    keep_large_buffers()
    if device.type == "cpu":
        torch.set_num_threads(1)
    custom_ops.set_mode(mode)
    if name != "build":
        custom_ops.prepare(device)
    return PARTS[name].work(device, quick)


def facts_of(device: torch.device) -> dict[str, Any]:
    """What results depend on.

    Raises:
        UserError: there is no such device.
        RuntimeError: forks can't use it.
    """
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise RuntimeError("CUDA was in use before this process was forked")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: there is no GPU here; --device=cpu --quick asks the same at toy size")
    torch.zeros(1, device=device)
    custom_ops.set_mode("native")
    return machine(device) | {"packages": {package.__name__: package.__version__ for package in PACKAGES}}


def first_look(device: torch.device) -> tuple[dict[str, Any], str]:
    """The facts, and how to start processes that can use the device.

    Raises:
        UserError: none can.
    """
    for method in ("fork", "spawn"):
        found = in_process(partial(facts_of, device), 100, method)
        if found["ok"]:
            return found["result"], method
        kind, _, text = found["error"].strip().splitlines()[-1].partition(": ")
        if kind.endswith("UserError"):
            break
    raise UserError(text or kind)


@click.command(cls=Command, help=__doc__)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="Toy sizes: does everything run?")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Some of the parts.")
@click.option("--out", type=Path, help="[default: benchmarks/results/<device>.json]", metavar="FILE")
def main(device: str, quick: bool, only: tuple[str, ...], out: Path | None) -> int:
    where, parts = torch.device(device), dict[str, Any]()
    found, method = first_look(where)
    facts = found | {"quick": quick}
    path = out or RESULTS / f"{facts['device'].lower().replace(' ', '-')}{'-quick' if quick else ''}.json"
    began = time.perf_counter()
    for name in only or PARTS:
        left = MOST_SEC - (time.perf_counter() - began)
        mode = "native" if parts.get("build", {"ok": True})["ok"] else "ref"
        if left < 10:
            parts[name] = {"ok": False, "error": "left out: the time was used up"}
        elif PARTS[name].needs_native and mode == "ref":
            parts[name] = {"ok": False, "error": "left out: there are no native ops, see build"}
        else:
            work = partial(run_here, name, where, quick, mode)
            parts[name] = in_process(work, min(PARTS[name].limit_sec, left), method) | {"ops": mode}
        state = "ok" if parts[name]["ok"] else parts[name]["error"].strip().splitlines()[-1]
        click.echo(f"{name:<20}{parts[name].get('wall_sec', 0.0):>7.1f} s  {state}")
        write_json(path, facts | {"wall_sec": time.perf_counter() - began, "parts": parts})
    click.echo(f"written: {path}")
    return 0 if all(row["ok"] for row in parts.values()) else 1


if __name__ == "__main__":
    main()
