"""Draw the curves of one or several runs to a PNG: losses, scores, gradients, augmentation, speed, metrics.

\b
    python plot_run.py runs/00000-photos-instance-auto-batch32
    python plot_run.py runs/00000-* --out=compare.png
"""

import io
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from metrics.plot import read_curves
from torch_utils.command_line import Command, UserError
from torch_utils.curves import Line, draw_panels
from torch_utils.files import atomic_write

PANELS = {  # title -> statistics that share a panel
    "loss of G": ("Loss/G/loss",),
    "loss of D": ("Loss/D/real", "Loss/D/fake"),
    "D(real), D(fake)": ("Loss/scores/real", "Loss/scores/fake"),
    "sign of D(real), D(fake)": ("Loss/signs/real", "Loss/signs/fake"),
    "gradient norms": ("Gradients/Gmain", "Gradients/Dmain", "Gradients/G", "Gradients/D"),
    "R1, path length penalty": ("Loss/r1_penalty", "Loss/pl_penalty"),
    "augmentation p": ("Progress/augment",),
    "overfitting r_t": ("Progress/overfitting",),
    "variety of fakes over that of reals": ("Progress/variety",),
    "seconds per thousand images": ("Timing/sec_per_kimg",),
    "memory, GiB": ("Resources/memory_gb", "Resources/host_memory_gb"),
}


@click.command(cls=Command, help=__doc__)
@click.argument("runs", nargs=-1, type=Path)
@click.option("--out", type=Path, help="Picture.  [default: curves.png in the (first) run]", metavar="PNG")
def main(runs: tuple[Path, ...], out: Path | None) -> None:
    if not runs:
        raise UserError("no run given; expected one or more folders made by train.py")
    panels: dict[str, dict[str, Line]] = {}
    for run, label in labels(runs).items():
        for title, lines in curves_of(run).items():
            for name, line in lines.items():
                panels.setdefault(title, {})[f"{label} {name}".strip()] = line
    out = out or runs[0] / "curves.png"
    buffer = io.BytesIO()
    draw_panels(panels, "kimg").save(buffer, format="png")
    try:
        with atomic_write(out) as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise UserError(f"--out={out} can't be written ({error.strerror}); name another place") from None
    click.echo(f"{len(panels)} panels in {out}")


def labels(runs: Sequence[Path]) -> dict[Path, str]:
    """run -> what its lines are called: its number, its name, or its path, the first that it shares with no other run.

    A single run needs no label.
    """
    names = {run: run.absolute().name for run in runs}
    if len(names) == 1:
        return dict.fromkeys(names, "")
    of_names, of_numbers = Counter(names.values()), Counter(name[:5] for name in names.values())
    return {
        run: name[:5] if of_numbers[name[:5]] == 1 else name if of_names[name] == 1 else str(run)
        for run, name in names.items()
    }


def curves_of(run: Path) -> dict[str, dict[str, Line]]:
    """title -> {line: points} of one run.

    Raises:
        UserError: not a run, or one without a tick.
    """
    path = run / "stats.jsonl"
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        raise UserError(f"{run} has no stats.jsonl; expected a folder made by train.py, after its first tick") from None
    rows = [row for text in texts if (row := means(text))]
    panels: dict[str, dict[str, Line]] = {}
    for title, names in PANELS.items():
        for name in names:
            line = [(row["Progress/kimg"], row[name]) for row in rows if name in row]
            if any(math.isfinite(y) for _, y in line):
                panels.setdefault(title, {})[name.rpartition("/")[2] if len(names) > 1 else ""] = line
    for name, points in sorted(read_curves(run).items()):
        panels[name] = {"": sorted(points.items())}
    if not panels:
        raise UserError(f"{path} holds no tick yet; wait for the first one")
    return panels


def means(text: str) -> dict[str, float]:
    """statistic -> its mean, of a line of stats.jsonl; nothing of a damaged one, such as one that a crash cut short."""
    try:
        statistics = {name: entry for name, entry in json.loads(text).items() if isinstance(entry, dict)}
        row = {name: float(statistic["mean"]) for name, statistic in statistics.items()}
        return row if math.isfinite(row["Progress/kimg"]) else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


if __name__ == "__main__":
    sys.exit(main())
