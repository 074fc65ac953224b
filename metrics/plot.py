"""Curves of metrics over snapshots, as an SVG that any browser shows."""

import json
import math
from pathlib import Path
from typing import Any

from torch_utils.command_line import UserError
from torch_utils.files import atomic_write

WIDTH, HEIGHT, MARGIN, GAP = 640, 200, 60, 40


def plot_curves(folder: Path) -> Path:
    """Draw `metrics.svg`: a panel for every result in the metric-*.jsonl of a folder, over thousands of images seen.

    Raises:
        UserError: there is nothing to draw.
    """
    curves = read_curves(folder)
    if not curves:
        raise UserError(f"--plot={folder} has no metric-*.jsonl with results of snapshots; run calc_metrics.py first")
    panels = [_panel(name, sorted(points.items()), row) for row, (name, points) in enumerate(sorted(curves.items()))]
    height = len(panels) * (HEIGHT + GAP) + GAP
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{"".join(panels)}</svg>\n'
    )
    path = folder / "metrics.svg"
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def read_curves(folder: Path) -> dict[str, dict[float, float]]:
    """{result: {kimg: value}}; of several lines for one snapshot the last counts. Lines cut short are passed over."""
    curves: dict[str, dict[float, float]] = {}
    for file in sorted(folder.glob("metric-*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                line: dict[str, Any] = json.loads(text)
                kimg, results = float(line["kimg"]), dict(line["results"])
            except (ValueError, KeyError, TypeError):
                continue
            for name, value in results.items():
                if isinstance(value, float | int) and math.isfinite(value):
                    curves.setdefault(name, {})[kimg] = float(value)
    return curves


def _panel(name: str, points: list[tuple[float, float]], row: int) -> str:
    top = row * (HEIGHT + GAP) + GAP
    low, high = (pick(y for _, y in points) for pick in (min, max))
    first, last = points[0][0], points[-1][0]

    def x(kimg: float) -> float:
        return MARGIN + (WIDTH - MARGIN - GAP) * (kimg - first) / ((last - first) or 1)

    def y(value: float) -> float:
        return top + HEIGHT * (1 - (value - low) / ((high - low) or 1))

    places = [(x(kimg), y(value)) for kimg, value in points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="#0969da"/>' for a, b in places)
    return (
        f'<text x="{MARGIN}" y="{top - 10}" font-weight="bold">{name}</text>\n'
        f'<path d="M{MARGIN} {top}V{top + HEIGHT}H{WIDTH - GAP}" fill="none" stroke="#888"/>\n'
        f'<text x="{MARGIN - 6}" y="{top + 4}" text-anchor="end">{high:.4g}</text>\n'
        f'<text x="{MARGIN - 6}" y="{top + HEIGHT}" text-anchor="end">{low:.4g}</text>\n'
        f'<text x="{MARGIN}" y="{top + HEIGHT + 16}">{first:g}</text>\n'
        f'<text x="{WIDTH - GAP}" y="{top + HEIGHT + 16}" text-anchor="end">{last:g} kimg</text>\n'
        f'<polyline points="{path}" fill="none" stroke="#0969da" stroke-width="2"/>{dots}\n'
    )
