"""Sheets: rows of images with, at the left, the real images that explain each row."""

from pathlib import Path

import PIL.Image
import torch

from torch_utils.files import atomic_write

GAP, ROW_GAP, BACKGROUND = 4, 1, 255  # pixels between explaining images and samples, and between rows; white
SMALLEST_SHOWN = 64  # pixels; smaller images are enlarged on a sheet by a whole factor


def sheet(samples: torch.Tensor, explaining: torch.Tensor | None = None) -> torch.Tensor:
    """One picture of a table of images.

    Args:
        samples: uint8 [rows, columns, C, H, W].
        explaining: uint8 [rows, few, C, H, W], set at the left behind a gap; None or few = 0: nothing there.

    Returns:
        uint8 [C, height, width].
    """
    table = _tile(samples)
    if explaining is None or explaining.shape[1] == 0:
        return table
    if explaining.shape[-1] != samples.shape[-1]:  # thumbnails beside larger samples
        flat = explaining.flatten(0, 1).float()
        flat = torch.nn.functional.interpolate(flat, size=samples.shape[-2:], mode="nearest-exact")
        explaining = flat.to(torch.uint8).unflatten(0, explaining.shape[:2])
    gap = torch.full((table.shape[0], table.shape[1], GAP), BACKGROUND, dtype=torch.uint8)
    return torch.cat([_tile(explaining), gap, table], dim=2)


def _tile(images: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns, C, H, W] -> [C, rows * (H + ROW_GAP) - ROW_GAP, columns * W]."""
    images = torch.nn.functional.pad(images, (0, 0, 0, ROW_GAP), value=BACKGROUND)
    rows, columns, channels, height, width = images.shape
    return images.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)[:, :-ROW_GAP]


def sheet_scale(resolution: int) -> int:
    """By what to enlarge a sheet of images of this resolution."""
    return max(SMALLEST_SHOWN // resolution, 1)


def picture(image: torch.Tensor, scale: int = 1) -> PIL.Image.Image:
    """uint8 [C, H, W] (C 1 or 3) for Pillow, each pixel `scale` times wide and high."""
    pixels = image.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    array = pixels.squeeze(0).numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()
    return PIL.Image.fromarray(array)


def save_png(image: torch.Tensor, path: str | Path, scale: int = 1) -> None:
    """Write uint8 [C, H, W] (C 1 or 3) as PNG, each pixel `scale` times wide and high; whole or not at all."""
    with atomic_write(path) as file:
        picture(image, scale).save(file, format="png")
