"""The sheets a run writes: reals.png once, fakes*.png as it goes."""

from pathlib import Path

import numpy as np
import torch

from training.dataset import Draws, SampleSource
from training.image_grid import save_png, sheet, sheet_scale
from training.randomness import hashed, permutation
from training.sampling import sample_images, z_from_seeds

ROWS, EXPLAINING, COLUMNS = 8, 4, 8


class Preview:
    """Fixed conditions and noise, so that sheets of one run can be compared.

    Each row of fakes: the conditioning instance and its nearest neighbours (or images of the class), then samples.
    """

    def __init__(self, source: SampleSource, z_dim: int) -> None:
        condition, self.explaining = source.showcase(ROWS, EXPLAINING)
        self.condition = condition.repeat_interleave(COLUMNS)
        self._conditions = len({row.numpy().tobytes() for row in torch.cat([condition.c, condition.h], dim=1).cpu()})
        self.z = z_from_seeds(range(ROWS * COLUMNS), z_dim)
        index = permutation(len(source), 0)[np.arange(ROWS * (EXPLAINING + COLUMNS)) % len(source)]
        self.reals = source[Draws(index, hashed(0, index))].image.cpu()
        self.scale = sheet_scale(source.resolution)

    def save_reals(self, path: Path) -> None:
        save_png(sheet(self.reals.unflatten(0, (ROWS, -1))), path, self.scale)

    def save_fakes(self, path: Path, generator: torch.nn.Module) -> dict[str, float]:
        """Draw them. How much they vary, relative to the reals; and how much conditions have to do with that."""
        fakes = sample_images(generator, self.z, self.condition)
        rows = fakes.unflatten(0, (ROWS, COLUMNS))
        save_png(sheet(rows, self.explaining), path, self.scale)
        figures = {"Progress/variety": variety(fakes) / max(variety(self.reals), 1e-8)}
        if self._conditions > 1:
            figures["Progress/heed"] = heed(rows)
        return figures


def variety(images: torch.Tensor) -> float:
    """Standard deviation of a pixel over uint8 images [N, C, H, W], on average."""
    return float(images.float().std(dim=0).mean())


def heed(rows: torch.Tensor) -> float:
    """How far a generator heeds its condition: variance between rows of one condition each, over that within rows.

    Of uint8 images [rows, columns, C, H, W]: the F statistic of an analysis of variance, its two variances means over
    pixels. About 1 where rows differ as much as by chance.
    """
    values = rows.float()
    between = values.mean(dim=1).var(dim=0).mean() * rows.shape[1]
    return float(between / values.var(dim=1).mean().clamp(min=1e-8))
