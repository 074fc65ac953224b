"""Curves of metrics over snapshots."""

import io
import json
import math
from pathlib import Path
from typing import Any

from torch_utils.command_line import UserError
from torch_utils.curves import draw_panels
from torch_utils.files import atomic_write


def plot_curves(folder: Path) -> Path:
    """Draw `metrics.png`: a panel for every result in the metric-*.jsonl of a folder, over thousands of images seen.

    Raises:
        UserError: there is nothing to draw, or the picture can't be written.
    """
    curves = read_curves(folder)
    if not curves:
        raise UserError(f"--plot={folder} has no metric-*.jsonl with results of snapshots; run calc_metrics.py first")
    panels = {name: {"": sorted(points.items())} for name, points in sorted(curves.items())}
    picture, path = io.BytesIO(), folder / "metrics.png"
    draw_panels(panels, "kimg", columns=min(len(panels), 2)).save(picture, format="png")
    try:
        with atomic_write(path) as file:
            file.write(picture.getvalue())
    except OSError as error:
        raise UserError(f"--plot={folder}: {path.name} can't be written there ({error.strerror})") from None
    return path


def read_curves(folder: Path) -> dict[str, dict[float, float]]:
    """{result: {kimg: value}}; of several lines for one snapshot the last counts.

    Lines cut short and files that can't be read are passed over: no training should end for them.
    """
    curves: dict[str, dict[float, float]] = {}
    for file in sorted(folder.glob("metric-*.jsonl")):
        try:
            texts = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for text in texts:
            try:
                line: dict[str, Any] = json.loads(text)
                kimg, results = float(line["kimg"]), dict(line["results"])
            except (ValueError, KeyError, TypeError):
                continue
            for name, value in results.items():
                if isinstance(value, float | int) and math.isfinite(value):
                    curves.setdefault(name, {})[kimg] = float(value)
    return curves
