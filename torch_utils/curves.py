"""Curves as a picture, with nothing but Pillow: a panel for each quantity, several lines in one."""

import math
from collections.abc import Iterator, Mapping, Sequence

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

WIDTH, HEIGHT = 560, 200  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 28, 24  # margins around its lines
COLORS = ("#1f5fa8", "#c4501b", "#2e8540", "#7a3e9d", "#8a6d00", "#4a4a4a")
GREY, LIGHT = "#707070", "#dddddd"

Line = Sequence[tuple[float, float]]  # points (x, y), x ascending; what is not finite is left out


def draw_panels(panels: Mapping[str, Mapping[str, Line]], x_label: str, columns: int = 2) -> PIL.Image.Image:
    """Draw panels row by row.

    Args:
        panels: title -> {name of a line: its points}; a single line needs no name.
        x_label: what all x axes show.
    """
    rows = math.ceil(len(panels) / columns)
    image = PIL.Image.new("RGB", (columns * WIDTH, rows * HEIGHT), "white")
    draw, font = PIL.ImageDraw.Draw(image), PIL.ImageFont.load_default(size=12)
    for number, (title, lines) in enumerate(panels.items()):
        y, x = divmod(number, columns)
        _panel(draw, font, (x * WIDTH, y * HEIGHT), title, lines, x_label)
    return image


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """At most `most` + 1 round numbers that span [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _panel(
    draw: PIL.ImageDraw.ImageDraw,
    font: PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont,
    corner: tuple[int, int],
    title: str,
    lines: Mapping[str, Line],
    x_label: str,
) -> None:
    left, right = corner[0] + LEFT, corner[0] + WIDTH - RIGHT
    top, bottom = corner[1] + TOP, corner[1] + HEIGHT - BOTTOM
    finite = {name: [point for point in line if math.isfinite(point[1])] for name, line in lines.items()}
    points = [point for line in finite.values() for point in line]
    draw.text((left, corner[1] + 6), title, fill="black", font=font)
    draw.rectangle((left, top, right, bottom), outline=GREY)
    if not points:
        return
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / ((x_high - x_low) or 1), (y - y_low) / ((y_high - y_low) or 1)
        return left + across * (right - left), bottom - 4 - up * (bottom - top - 8)

    for value in ticks(y_low, y_high):
        height = place(x_low, value)[1]
        draw.line((left + 1, height, right - 1, height), fill=LIGHT)
        draw.text((left - 6, height), f"{value:.4g}", fill=GREY, font=font, anchor="rm")
    for value in ticks(x_low, x_high):
        draw.text((place(value, y_low)[0], bottom + 4), f"{value:.4g}", fill=GREY, font=font, anchor="mt")
    draw.text((right, corner[1] + 6), x_label, fill=GREY, font=font, anchor="ra")
    for (name, line), color in zip(finite.items(), _colors(), strict=False):
        places = [place(x, y) for x, y in line]
        if len(places) > 1:
            draw.line(places, fill=color, width=2)
        for x, y in places if len(places) < 30 else []:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
        if name and places:
            draw.text((places[-1][0] - 4, places[-1][1] - 2), name, fill=color, font=font, anchor="rb")


def _colors() -> Iterator[str]:
    while True:
        yield from COLORS
