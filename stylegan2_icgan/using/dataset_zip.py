"""Many images in one zip, as a data set of this project: for metrics, or to train on."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stylegan2_icgan.conditioning import Rows
from stylegan2_icgan.using.encoding import encode, in_threads
from stylegan2_icgan.using.rendering import Point, Renderer
from torch_utils.files import atomic_write, format_time
from training.partial_zip import DatasetWriter
from training.randomness import integers

ORDERS = ("round-robin", "random")
EVERY_SEC = 10.0  # between two lines of progress
CONDITIONS = 81  # stream of randomness

Item = TypeVar("Item")


def points_of(num: int, table: Rows, order: str) -> list[Point]:
    """Image n has seed n. Its condition: each in turn, or one at random, a function of n and their number alone."""
    n = np.arange(num)
    rows = n % len(table) if order == "round-robin" else integers(len(table), CONDITIONS, n)
    return [Point(seed, row) for seed, row in enumerate(rows.tolist())]


def write_zip(
    renderer: Renderer, table: Rows, points: list[Point], path: Path, about: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Write an image for each point, and dataset.json with their classes; the zip gets its name when it is whole.

    Args:
        about: for dataset.json.
    """
    labels = table.condition.c.argmax(dim=1).tolist() if table.condition.c.shape[1] else None
    shape, sources = renderer.model.recipe.shape, {}
    with atomic_write(path) as stream:
        writer = DatasetWriter(stream)
        files = in_threads(lambda image: encode(image, "png"), renderer.images(table, points))
        for point, png in zip(points, with_speed(files, len(points), say), strict=True):
            sources[writer.add(png)] = point
        rows = None if labels is None else [[name, labels[point.row]] for name, point in sources.items()]
        metadata = {
            "labels": rows,
            "num_classes": table.condition.c.shape[1],
            "resolution": shape.img_resolution,
            "channels": shape.img_channels,
            "sources": {name: point.name(table) for name, point in sources.items()},
            "generated": about,
        }
        writer.finish(metadata)


def with_speed(items: Iterable[Item], total: int, say: Callable[[str], None]) -> Iterator[Item]:
    """Pass the items on, and say now and then how fast they come."""
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= EVERY_SEC or done == total:
            last, speed = now, done / max(now - start, 1e-9)
            say(f"{done:,} of {total:,} images, {speed:.1f} images/s, {format_time((total - done) / speed)} left")
