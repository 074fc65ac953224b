"""Walks from image to image, through noise, styles, instances and classes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from stylegan2_icgan.conditioning import Rows
from stylegan2_icgan.extractors.extractor import normalise
from stylegan2_icgan.using.rendering import Point, Renderer
from torch_utils.command_line import UserError
from training.condition import Condition
from training.config import option
from training.sampling import z_from_seeds

NEARLY_PARALLEL = 1e-4  # radians, of two vectors or of one and the other's opposite
SPACES, PATHS = ("z", "w"), ("spherical", "linear")


@dataclass(frozen=True)
class WalkOptions:
    """How to go from one image to the next."""

    space: str = option(
        "z", "z: noise, instance and class; w: the styles they give, in a straight line.", choices=SPACES
    )
    path: str = option("spherical", "Of noise and instances in --space=z; classes are always linear.", choices=PATHS)
    frames: int = option(24, "Frames from one image to the next.", unit="N")
    loop: bool = option(False, "Return to the first image.")
    grid: str = option(
        "1x1", "Several walks side by side, columns x rows; each gets as many of the images.", unit="2x3"
    )


class Place(NamedTuple):
    """Where a walk is: noise and condition; a batch of one."""

    z: torch.Tensor  # float32 [1, z_dim]
    condition: Condition


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Along the arc from a to b, both [1, D], of lengths that may differ: a itself at t = 0, b at 1.

    sin((1 - t) angle) / sin(angle) a + sin(t angle) / sin(angle) b, computed in float64.
    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985, section 3.3.

    Raises:
        UserError: the two are opposite, and every arc is as short.
    """
    a_unit, b_unit = (x.double() / x.double().norm() for x in (a, b))
    angle = 2 * math.atan2((a_unit - b_unit).norm().item(), (a_unit + b_unit).norm().item())
    if angle < NEARLY_PARALLEL:
        return a.lerp(b, t)
    if math.pi - angle < NEARLY_PARALLEL:
        raise UserError(
            "two images of the walk have opposite noise or features: no arc is the shortest; add one between"
        )
    whole = math.sin(angle)
    return (a.double() * (math.sin((1 - t) * angle) / whole) + b.double() * (math.sin(t * angle) / whole)).float()


def between(a: Place, b: Place, t: float, path: str) -> Place:
    """Noise and features along arcs ('spherical') or chords ('linear'), features of unit length; classes linear."""
    c = a.condition.c.lerp(b.condition.c, t)
    if path == "linear":
        return Place(a.z.lerp(b.z, t), Condition(c, normalise(a.condition.h.lerp(b.condition.h, t))))
    h = slerp(a.condition.h, b.condition.h, t) if a.condition.h.shape[1] else a.condition.h
    return Place(slerp(a.z, b.z, t), Condition(c, h))


def walk(renderer: Renderer, table: Rows, points: Sequence[Point], how: WalkOptions) -> Iterator[torch.Tensor]:
    """Frames uint8 [C, H, W], one image at a time; those at the points are the images of the points."""
    places = [
        Place(z_from_seeds([point.seed], renderer.generator.z_dim), table.condition[[point.row]]) for point in points
    ]
    ends = list(zip(places, places[1:] + places[:1], strict=True))
    for a, b in ends if how.loop else ends[:-1]:
        styles = [renderer.styles(*end) for end in (a, b)] if how.space == "w" else []
        for step in range(how.frames):
            t = step / how.frames
            if styles:
                yield renderer.from_styles(styles[0].lerp(styles[1], t))[0]
            else:
                yield renderer.from_latents(*(between(a, b, t, how.path) if step else a))[0]
    if not how.loop:
        yield renderer.from_latents(*places[-1])[0]


def count_frames(num_points: int, how: WalkOptions) -> int:
    """Of one walk, and so of all of them at once."""
    columns, rows = parse_grid(how, num_points)
    each = num_points // (columns * rows)
    return each * how.frames if how.loop else (each - 1) * how.frames + 1


def parse_grid(how: WalkOptions, num_points: int) -> tuple[int, int]:
    """Columns and rows of --grid.

    Raises:
        UserError: not such a grid, or images that can't be shared out among its walks.
    """
    columns, _, rows = how.grid.partition("x")
    if not columns.isdecimal() or not rows.isdecimal() or not int(columns) * int(rows):
        raise UserError(f"--grid={how.grid}: expected columns x rows, for example 2x3")
    walks = int(columns) * int(rows)
    if num_points % walks or num_points < 2 * walks:
        raise UserError(
            f"--grid={how.grid}: {walks} walks and {num_points} images to walk through; expected two or more for each "
            "walk, as many for all. Give more --seeds, --rows or images"
        )
    return int(columns), int(rows)


def side_by_side(renderer: Renderer, table: Rows, points: Sequence[Point], how: WalkOptions) -> Iterator[torch.Tensor]:
    """Frames of several walks at once, uint8 [C, rows * H, columns * W]; consecutive points make a walk."""
    columns, rows = parse_grid(how, len(points))
    each = len(points) // (columns * rows)
    walks = [walk(renderer, table, points[start : start + each], how) for start in range(0, len(points), each)]
    for images in zip(*walks, strict=True):
        lines = [torch.cat(images[row * columns :][:columns], dim=2) for row in range(rows)]
        yield torch.cat(lines, dim=1)
