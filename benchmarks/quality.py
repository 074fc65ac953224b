"""Does conditioning on instances pay? Ways of conditioning on real images, equal budgets and seeds.

    python -m benchmarks.quality --set=digits16 --rows=conditioning --seeds=0-2
    python -m benchmarks.quality --set=emoji16 --data=seen16.zip --unseen=held-out16.zip --rows=all --seeds=0-2

A row is a way to call train.py; a run of it is made once, evaluated and kept in the results file, so that a table grows
over any number of calls. Features are those of a small classifier trained on four fifths of the real images (its
accuracy on the other fifth is printed). Samples are conditioned on instances of the data set, uniformly drawn: on their
features, their own classes, or both. Agreement is the share of samples whose class, by that classifier, is the
instance's; diversity the mean distance of two samples of one condition over that of two real images.

With --unseen every run is also asked for samples of images it was not trained on, and judged against those; models
conditioned on instances alone are also asked for samples of a few exemplars.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.judges import train_classifier
from benchmarks.quality_measures import COLUMNS, EXEMPLARS, Results, measure
from torch_utils.command_line import Command, NearestChoice, Ranges, UserError
from torch_utils.files import atomic_write
from training.dataset import ImageFolderDataset
from training.run_folder import snapshots_in

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ImageSet:
    """Real images, and how long a run on them is.

    Args:
        data: in the repository; None: named by --data.
        flags: of every train.py.
    """

    data: Path | None
    flags: tuple[str, ...]


SETS = {
    "digits16": ImageSet(ROOT / "datasets" / "digits.zip", ("--kimg=20",)),
    "emoji16": ImageSet(None, ("--kimg=20",)),
    "emoji64": ImageSet(None, ("--kimg=1000", "--tick=20", "--snap=10", "--cfg=auto", "--aug=noaug")),
}
STYLEGAN2 = "--cfg=tiny"
PCA = ("--extractor=pca",)  # what every machine has
CONDITIONING = {
    "none": (STYLEGAN2, "--cond=none"),
    "class": (STYLEGAN2, "--cond=class"),
    "instance": (STYLEGAN2, "--cond=instance", *PCA),
    "instance+class": (STYLEGAN2, "--cond=instance+class", *PCA),
}
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "conditioning": CONDITIONING,
    "flips": {
        "none, flips": (*CONDITIONING["none"], "--mirror"),
        "instance, flips": (*CONDITIONING["instance"], "--mirror", "--mirror-instances"),
    },
    "ada": {
        "none, ada": (*CONDITIONING["none"], "--aug=ada", "--ada-kimg=20"),
        "instance, ada": (*CONDITIONING["instance"], "--aug=ada", "--ada-kimg=20"),
    },
    "neighbours": {f"instance, k = {k}": (*CONDITIONING["instance"], f"--k={k}") for k in (5, 20, 50)},
    "family": {
        f"{name}, {cond}": (f"--cfg={name}-tiny", *CONDITIONING[cond][1:])
        for name in ("sagan", "biggan-deep")
        for cond in ("none", "instance")
    },
    "biggan": {f"biggan, {cond}": ("--cfg=biggan-tiny", *row[1:]) for cond, row in CONDITIONING.items()},
}
ROWS = {name: row for group in GROUPS.values() for name, row in group.items()}


def train_gan(data: Path, flags: tuple[str, ...], outdir: Path) -> Path:
    """Run train.py to its end; the last snapshot."""
    command = [sys.executable, str(ROOT / "train.py"), f"--data={data}", *flags, f"--outdir={outdir}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (run,) = outdir.iterdir()
    return snapshots_in(run)[-1]


def tables(runs: dict[str, Results]) -> str:
    """Markdown: how the rows do, how they do on what they never saw, and of how many exemplars they need."""
    parts = [table("conditioned on", {name: runs_of(runs, name) for name in ROWS})]
    unseen = {name: [run["unseen"] for run in runs_of(runs, name) if "unseen" in run] for name in ROWS}
    if any(unseen.values()):
        parts.append(table("conditioned on, unseen", unseen))
    for name in ROWS:
        stored = [run["exemplars"] for run in runs_of(runs, name) if "exemplars" in run]
        if stored:
            rows = {f"{count:,}": [run[str(count)] for run in stored if str(count) in run] for count in EXEMPLARS}
            parts.append(table(f"{name}: exemplars", rows))
    return "\n\n".join(parts)


def runs_of(runs: dict[str, Results], name: str) -> list[Results]:
    """All seeds of a row."""
    return [run for key, run in runs.items() if key.rpartition("/")[0] == name]


def table(title: str, rows: dict[str, list[Results]]) -> str:
    """Markdown: mean and, over several seeds, deviation; rows without a run are left out."""
    lines = [f"| {title} | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for column in COLUMNS:
            values = [value for run in runs if (value := run[column]) is not None]
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
@click.option("--minutes", type=float, help="Begin no run after this long.", metavar="MIN")
@click.option("--device", default="cpu", show_default=True, help="Where to train.")
@click.option("--out", type=Path, help="Results.  [default: benchmarks/results/quality-SET.json]")
@click.option("--flags", default="", help="More flags for every train.py, e.g. '--kimg=8'.")
def main(
    name: str,
    data: Path | None,
    unseen: Path | None,
    rows: str,
    seeds: list[int],
    minutes: float | None,
    device: str,
    out: Path | None,
    flags: str,
) -> None:
    torch.set_num_threads(1)
    data = data or SETS[name].data
    if data is None:
        raise UserError(f"--data is missing; make --set={name} with: python dataset_tool.py convert --source=FONT.ttf")
    chosen = rows_named(rows)
    dataset = labelled(data)
    other = labelled(unseen) if unseen else None
    if other is not None and other.num_classes != dataset.num_classes:
        raise UserError(
            f"--unseen={unseen} has {other.num_classes} classes, --data={data} has {dataset.num_classes}; convert both "
            "from one source"
        )
    out = out or ROOT / "benchmarks" / "results" / f"quality-{name}.json"
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    made_of = {
        "flags": " ".join([*SETS[name].flags, *flags.split()]),
        "data": dataset.fingerprint(),
        "unseen": other.fingerprint() if other is not None else None,
    }
    if any(results.get(key, value) != value for key, value in made_of.items()):
        raise UserError(f"--out={out} holds runs with other --flags, --data or --unseen; name another file")
    missing = [(row, seed) for seed in seeds for row in chosen if f"{row}/{seed}" not in results["runs"]]
    if missing:
        judge, accuracy = train_classifier(dataset)
        click.echo(f"classifier: {accuracy:.3f} of held-out real images right")
        machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
        results |= made_of | {"classifier_accuracy": accuracy, "torch": torch.__version__, "machine": machine}
    start = time.monotonic()
    for row, seed in missing:
        if minutes is not None and time.monotonic() - start > minutes * 60:
            break
        words = (*ROWS[row], *made_of["flags"].split(), f"--seed={seed}", f"--device={device}")
        with tempfile.TemporaryDirectory() as folder:
            snapshot = train_gan(data.resolve(), words, Path(folder))
            found = measure(snapshot, dataset, other, judge)
        results["runs"][f"{row}/{seed}"] = found
        click.echo(f"{row}/{seed}: {found}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())
    click.echo(tables(results["runs"]))


def labelled(path: Path) -> ImageFolderDataset:
    dataset = ImageFolderDataset(path, use_labels=True)
    dataset.decode_into_memory()
    return dataset


def rows_named(words: str) -> list[str]:
    """'conditioning; instance, ada' -> the rows of a group, and a row.

    Raises:
        UserError: no such row or group.
    """
    if words == "all":
        return list(ROWS)
    found: list[str] = []
    for word in (word.strip() for word in words.split(";")):
        if word in GROUPS:
            found += GROUPS[word]
        elif word in ROWS:
            found.append(word)
        else:
            raise UserError(f"--rows={word!r} is unknown; there are {', '.join(GROUPS)} and the rows {'; '.join(ROWS)}")
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    sys.exit(main())
