"""Which methods find all modes of a distribution? Points on a ring and on a grid, and stacked digits.

    python -m benchmarks.modes --seeds=0-9 --task=ring --task=grid --jobs=2
    python -m benchmarks.modes --seeds=0-2 --task=stacked --jobs=2
    python -m benchmarks.modes --seeds=0 --task=grid --steps=10000 --out=modes-10000.json

A run trains one method with one seed on the CPU and measures its average generator; finished runs are in the results
file and are not repeated. The ring and the grid have 8 and 25 modes, of which 50,000 samples are measured; the stacked
digits have 1,000, of which 10,000 samples are.
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.mode_methods import METHODS
from benchmarks.mode_tasks import TASKS, train
from torch_utils.command_line import Command, NearestChoice, Ranges, UserError
from torch_utils.files import atomic_write

COLUMNS = {"modes": "modes", "quality": "high quality", "reverse_kl": "reverse KL"}


def table(runs: dict[str, dict[str, float]]) -> str:
    """Markdown, for each task: mean and, over several seeds, deviation."""
    lines: list[str] = []
    for name, task in TASKS.items():
        of_task = {key: run for key, run in runs.items() if key.split("/")[0] == name}
        if not of_task:
            continue
        columns = [column for column in COLUMNS if column in next(iter(of_task.values()))]
        titles = [f"modes of {task.num_modes:,}" if column == "modes" else COLUMNS[column] for column in columns]
        lines += ["", f"| {name} | seeds | {' | '.join(titles)} |", "|---" * (len(columns) + 2) + "|"]
        for method in METHODS:
            rows = [run for key, run in of_task.items() if key.split("/")[1] == method]
            cells = [cell([row[column] for row in rows]) for column in columns]
            if rows:
                lines.append(f"| {method} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def cell(values: list[float]) -> str:
    """'24.3 ± 0.5': one digit where the numbers are large, three where they are shares."""
    digits = 1 if max(values, default=0) >= 2 else 3
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}" if values else "-"


@dataclass(frozen=True)
class Run:
    """One method, one task, one seed."""

    task: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.task}/{self.method}/{self.seed}"

    def and_results(self, steps: int | None, deadline: float) -> tuple["Run", dict[str, float] | None]:
        """What was measured, by one thread; None: it did not begin, since it was later than `deadline`."""
        if time.monotonic() > deadline:
            return self, None
        torch.set_num_threads(1)
        task, start = TASKS[self.task], time.process_time()
        found = train(task, METHODS[self.method], self.seed, steps or task.steps)
        return self, found | {"cpu_sec": round(time.process_time() - start, 1)}


def finished(runs: list[Run], steps: int | None, deadline: float, jobs: int) -> Iterator[tuple[Run, dict[str, float]]]:
    """Runs and their results, some at a time in processes of their own; without those that `deadline` left out."""
    with contextlib.ExitStack() as stack:
        every = partial(Run.and_results, steps=steps, deadline=deadline)
        if jobs == 1:
            found = map(every, runs)
        else:  # leaving ends the processes, whatever they are at
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(jobs))
            found = pool.imap_unordered(every, runs)
        yield from ((run, results) for run, results in found if results is not None)


@click.command(cls=Command, help=__doc__)
@click.option("--task", "tasks", multiple=True, type=NearestChoice(list(TASKS)), help="Of these only.  [default: all]")
@click.option("--method", "methods", multiple=True, type=NearestChoice(list(METHODS)), help="Of these only.")
@click.option("--seeds", type=Ranges(), default="0-2", show_default=True, help="Seeds of the runs.")
@click.option("--steps", type=click.IntRange(1), help="Steps of a run.  [default: each task's own]", metavar="N")
@click.option("--minutes", type=float, help="Begin no run after this long.", metavar="MIN")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time.", metavar="N")
@click.option("--out", type=Path, default=Path("benchmarks/results/modes.json"), show_default=True, help="Results.")
def main(
    tasks: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: list[int],
    steps: int | None,
    minutes: float | None,
    jobs: int,
    out: Path,
) -> None:
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    if results.setdefault("steps", steps) != steps:
        raise UserError(f"--out={out} holds runs of --steps={results['steps']}; name another file for --steps={steps}")
    results |= {"torch": torch.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    deadline = time.monotonic() + minutes * 60 if minutes is not None else math.inf
    every = itertools.product(seeds, tasks or TASKS, methods or METHODS)
    runs = [Run(name, method, seed) for seed, name, method in every]
    missing = [run for run in runs if run.key not in results["runs"]]
    for run, found in finished(missing, steps, deadline, jobs):
        results["runs"][run.key] = found
        click.echo(f"{run.key}: {found}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())
    click.echo(table(results["runs"]))


if __name__ == "__main__":
    sys.exit(main())
