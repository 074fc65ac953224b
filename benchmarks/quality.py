"""Does conditioning on instances pay? Ways of conditioning on real images, equal budgets and seeds.

    python -m benchmarks.quality --set=digits16 --rows=conditioning --seeds=0-2
    python -m benchmarks.quality --set=emoji16 --data=seen16.zip --unseen=held-out16.zip --rows=all --seeds=0-2

A row is a way to call train.py; a run of it is made once, evaluated and kept in the results file, so that a table grows
over any number of calls. Features are those of a small classifier trained on four fifths of the real images (its
accuracy on the other fifth is printed). Samples are conditioned on instances of the data set, uniformly drawn: on their
features, their own classes, or both. Agreement is the share of samples whose class, by that classifier, is the
instance's; diversity the mean distance of two samples of one condition over that of two real images.

On a GPU that is lent for minutes: --set=emoji64 --data=... --device=cuda --minutes=9 --scratch=DIR, again and again.

With --unseen every run is also asked for samples of images it was not trained on, and judged against those; models
conditioned on instances alone are also asked for samples of a few exemplars.
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.judges import train_classifier
from benchmarks.quality_measures import COLUMNS, EXEMPLARS, Results, measure
from benchmarks.quality_rows import GROUPS, ROOT, ROWS, SETS, rows_named
from metrics.lpips import Lpips
from torch_utils.command_line import Command, NearestChoice, Ranges, UserError, Words
from torch_utils.files import atomic_write
from training.dataset import ImageFolderDataset
from training.run_folder import OPTIONS_FILE, snapshots_in, states_in

FOREVER = 1_000_000  # minutes


def train_gan(data: Path, flags: Sequence[str], outdir: Path, minutes: float | None) -> Path | None:
    """Run train.py, or go on with a run that was stopped.

    Args:
        minutes: it is stopped after so long; None: it is not.

    Returns:
        the last snapshot; None: the run is not at its end.
    """
    for run in outdir.glob("0*"):
        if not states_in(run):  # stopped before there was anything to go on with
            shutil.rmtree(run)
    begun = next(outdir.glob("0*"), None)
    words = [f"--resume={begun}"] if begun else [f"--data={data}", *flags, f"--outdir={outdir}"]
    words.append(f"--minutes={FOREVER if minutes is None else max(minutes, 0.001):.3f}")  # not that of the last call
    subprocess.run([sys.executable, str(ROOT / "train.py"), *words], check=True, stdout=subprocess.DEVNULL)
    (run,) = outdir.glob("0*")
    return snapshots_in(run)[-1] if at_its_end(run) else None


def at_its_end(run: Path) -> bool:
    stats, kimg = run / "stats.jsonl", json.loads((run / OPTIONS_FILE).read_text())["loop"]["kimg"]
    lines = stats.read_text().splitlines() if stats.exists() else []
    return bool(lines) and json.loads(lines[-1])["Progress/kimg"]["mean"] >= kimg


def tables(runs: dict[str, Results], names: Iterable[str] = ROWS) -> str:
    """Markdown: how the rows do, how they do on what they never saw, and of how many exemplars they need."""
    parts = [table("conditioned on", {name: runs_of(runs, name) for name in names})]
    unseen = {name: [run["unseen"] for run in runs_of(runs, name) if "unseen" in run] for name in names}
    if any(unseen.values()):
        parts.append(table("conditioned on, unseen", unseen))
    for name in names:
        stored = [run["exemplars"] for run in runs_of(runs, name) if "exemplars" in run]
        if stored:
            rows = {f"{count:,}": [run[str(count)] for run in stored if str(count) in run] for count in EXEMPLARS}
            parts.append(table(f"{name}: exemplars", rows))
    return "\n\n".join(parts)


def runs_of(runs: dict[str, Results], name: str) -> list[Results]:
    """All seeds of a row."""
    return [run for key, run in runs.items() if key.rpartition("/")[0] == name]


def table(title: str, rows: dict[str, list[Results]]) -> str:
    """Markdown: mean and, over several seeds, deviation; rows without a run, and LPIPS without values, are left out."""
    measured = any(run.get("lpips") is not None for runs in rows.values() for run in runs)
    columns = [column for column in COLUMNS if column != "lpips" or measured]
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for column in columns:
            values = [value for run in runs if (value := run.get(column)) is not None]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}" if values else "-")
        if runs:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(cls=Command, help=__doc__)
@click.option("--set", "name", type=NearestChoice(list(SETS)), default="digits16", show_default=True)
@click.option("--data", type=Path, help="Labelled images of the set.  [default: in the repository, if there]")
@click.option("--unseen", type=Path, help="Labelled images that no run is trained on, of the same classes.")
@click.option("--rows", default="conditioning", show_default=True, help=f"Rows or {', '.join(GROUPS)}; or all.")
@click.option("--seeds", type=Ranges(), default="0-2", show_default=True, help="Seeds of the runs.")
@click.option("--minutes", type=float, help="Begin no run after this long; with --scratch, stop.", metavar="MIN")
@click.option("--scratch", type=Path, help="Keep runs here, so that the next call goes on with a stopped one.")
@click.option("--device", default="cpu", show_default=True, help="Where to train.")
@click.option("--out", type=Path, help="Results.  [default: benchmarks/results/quality-SET.json]")
@click.option("--lpips-weights", cls=Words, type=Path, help="VGG16 and LPIPS heads, for diversity.", metavar="FILE ...")
@click.option("--flags", default="", help="More flags for every train.py, e.g. '--kimg=8'.")
def main(
    name: str,
    data: Path | None,
    unseen: Path | None,
    rows: str,
    seeds: list[int],
    minutes: float | None,
    scratch: Path | None,
    device: str,
    out: Path | None,
    lpips_weights: Sequence[Path],
    flags: str,
) -> None:
    torch.set_num_threads(1)
    data = data or SETS[name].data
    if data is None:
        raise UserError("--data is missing; make it with dataset_tool.py convert, as docs/quality.md says")
    plans = {row: ROWS[row].words(SETS[name], name) for row in rows_named(rows)}
    dataset, other = labelled(data, unseen)
    lpips = Lpips.load(lpips_weights, torch.device("cpu")) if lpips_weights else None
    out = out or ROOT / "benchmarks" / "results" / f"quality-{name}.json"
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    made_of = {
        "flags": " ".join([*SETS[name].flags, *flags.split()]),
        "data": dataset.fingerprint(),
        "unseen": other.fingerprint() if other is not None else None,
        "lpips": lpips.description if lpips is not None else None,
    }
    if results["runs"] and any(results.get(key) != value for key, value in made_of.items()):
        raise UserError(
            f"--out={out} holds runs with other --flags, --data, --unseen or --lpips-weights; name another file"
        )
    missing = [(row, seed) for seed in seeds for row in plans if f"{row}/{seed}" not in results["runs"]]
    if missing:
        judge, accuracy = train_classifier(dataset)
        click.echo(f"classifier: {accuracy:.3f} of held-out real images right")
        machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
        results |= made_of | {"classifier_accuracy": accuracy, "torch": torch.__version__, "machine": machine}
    start = time.monotonic()
    for row, seed in missing:
        left = None if minutes is None else minutes - (time.monotonic() - start) / 60
        if left is not None and left <= 0:
            break
        words = [*plans[row], *flags.split(), f"--seed={seed}", f"--device={device}"]
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if scratch is None else scratch
            snapshot = train_gan(data.resolve(), words, folder / f"{row}-{seed}", left if scratch else None)
            if snapshot is None:
                click.echo(f"{row}/{seed}: to be continued by the same command")
                break
            found = measure(snapshot, dataset, other, judge, lpips)
        results["runs"][f"{row}/{seed}"] = found
        click.echo(f"{row}/{seed}: {found}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())
    click.echo(tables(results["runs"]))


def labelled(data: Path, unseen: Path | None) -> tuple[ImageFolderDataset, ImageFolderDataset | None]:
    """Images in memory.

    Raises:
        UserError: they are not of the same classes.
    """
    dataset, other = (ImageFolderDataset(path, use_labels=True) if path else None for path in (data, unseen))
    assert dataset is not None
    if other is not None and other.num_classes != dataset.num_classes:
        raise UserError(
            f"--unseen={unseen} has {other.num_classes} classes, --data={data} has {dataset.num_classes}; convert both "
            "from one source"
        )
    for images in (dataset, other):
        if images is not None:
            images.decode_into_memory()
    return dataset, other


if __name__ == "__main__":
    sys.exit(main())
