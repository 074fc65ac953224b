"""Draw the curves of one or several runs to a PNG: losses, scores, gradients, augmentation, speed, metrics.

\b
    python plot_run.py runs/00000-photos-instance-auto-batch32
    python plot_run.py runs/00000-* --out=compare.png
"""

import io
import json
import math
import sys
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
    for run in runs:
        prefix = f"{run.name[:5]} " if len(runs) > 1 else ""
        for title, lines in curves_of(run).items():
            for name, line in lines.items():
                panels.setdefault(title, {})[f"{prefix}{name}".strip()] = line
    out = out or runs[0] / "curves.png"
    buffer = io.BytesIO()
    draw_panels(panels, "kimg").save(buffer, format="png")
    try:
        with atomic_write(out) as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise UserError(f"--out={out} can't be written ({error.strerror}); name another place") from None
    click.echo(f"{len(panels)} panels in {out}")


def curves_of(run: Path) -> dict[str, dict[str, Line]]:
    """title -> {line: points} of one run.

    Raises:
        UserError: not a run, or one without a tick.
    """
    path = run / "stats.jsonl"
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(f"{run} has no stats.jsonl; expected a folder made by train.py, after its first tick") from None
    rows = []
    for text in texts:
        try:
            rows.append(json.loads(text))
        except ValueError:  # a line that a crash cut short
            continue
    panels: dict[str, dict[str, Line]] = {}
    for title, names in PANELS.items():
        for name in names:
            line = [(row["Progress/kimg"]["mean"], row[name]["mean"]) for row in rows if name in row]
            if any(math.isfinite(y) for _, y in line):
                panels.setdefault(title, {})[name.rpartition("/")[2] if len(names) > 1 else ""] = line
    for name, points in sorted(read_curves(run).items()):
        panels[name] = {"": sorted(points.items())}
    if not panels:
        raise UserError(f"{path} holds no tick yet; wait for the first one")
    return panels


if __name__ == "__main__":
    sys.exit(main())
