"""A folder of images, one for each condition and seed, and a sheet of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from stylegan2_icgan.conditioning import Rows
from stylegan2_icgan.using.encoding import encode, in_threads
from stylegan2_icgan.using.rendering import Point, Renderer
from torch_utils.command_line import UserError
from torch_utils.files import atomic_write
from training.image_grid import save_png, sheet, sheet_scale

LAYOUTS = ("flat", "folders")
FORMATS = ("png", "jpg", "npz")
SHEET_ROWS, SHEET_COLUMNS = 64, 32  # of more images the first are shown


@contextlib.contextmanager
def writing_to(path: Path, flag: str = "--outdir") -> Iterator[None]:
    """Make a folder, and let what is written there fail in one line."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{flag}={path} can't be written ({error}); name another folder") from None


def write_grid(renderer: Renderer, table: Rows, seeds: list[int], outdir: Path, layout: str, kind: str) -> torch.Tensor:
    """Write every condition with every seed.

    Args:
        layout: 'flat', or 'folders': one for each condition.
        kind: 'png', 'jpg', or 'npz': one file for all, with the conditions.

    Returns:
        For the sheet: uint8 [rows, columns, C, H, W].
    """
    points = [Point(seed, row) for row in range(len(table)) for seed in seeds]
    shown: list[torch.Tensor] = []
    if kind == "npz":
        images = torch.stack(list(renderer.images(table, points))).unflatten(0, (len(table), len(seeds)))
        _save_arrays(outdir / "images.npz", images, table, seeds)
        return images[:SHEET_ROWS, :SHEET_COLUMNS]

    paths = [outdir / _path(table, point, layout, kind) for point in points]
    for folder in {path.parent for path in paths}:
        folder.mkdir(exist_ok=True)
    jobs = zip(paths, renderer.images(table, points), strict=True)
    for number, image in enumerate(in_threads(save_image, jobs)):
        row, column = divmod(number, len(seeds))
        if row < SHEET_ROWS and column < SHEET_COLUMNS:
            shown.append(image)
    return torch.stack(shown).unflatten(0, (-1, min(len(seeds), SHEET_COLUMNS)))


def save_image(job: tuple[Path, torch.Tensor]) -> torch.Tensor:
    """Write uint8 [C, H, W] to a .png or .jpg, whole or not at all; the image again."""
    path, image = job
    with atomic_write(path) as file:
        file.write(encode(image, path.suffix[1:]))
    return image


def _path(table: Rows, point: Point, layout: str, kind: str) -> Path:
    folder = table.names[point.row]
    if layout == "folders" and folder:
        return Path(folder, f"seed{point.seed:04d}.{kind}")
    return Path(f"{point.name(table)}.{kind}")


def _save_arrays(path: Path, images: torch.Tensor, table: Rows, seeds: list[int]) -> None:
    """One .npz: images uint8 [rows, seeds, H, W, C], seeds, names [rows], c [rows, c_dim], h [rows, h_dim]."""
    with atomic_write(path) as file:
        np.savez(
            file,
            images=images.permute(0, 1, 3, 4, 2).numpy(),
            seeds=np.array(seeds, np.int64),
            names=np.array(table.names),
            c=table.condition.c.numpy(),
            h=table.condition.h.numpy(),
        )


def save_sheet(samples: torch.Tensor, explaining: torch.Tensor | None, path: Path) -> None:
    """uint8 [rows, columns, C, H, W] as one picture, with what explains each row at its left."""
    save_png(sheet(samples, explaining), path, sheet_scale(samples.shape[-1]))
