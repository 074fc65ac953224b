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
        self.z = z_from_seeds(range(ROWS * COLUMNS), z_dim)
        index = permutation(len(source), 0)[np.arange(ROWS * (EXPLAINING + COLUMNS)) % len(source)]
        self.reals = source[Draws(index, hashed(0, index))].image.cpu()
        self.scale = sheet_scale(source.resolution)

    def save_reals(self, path: Path) -> None:
        save_png(sheet(self.reals.unflatten(0, (ROWS, -1))), path, self.scale)

    def save_fakes(self, path: Path, generator: torch.nn.Module) -> float:
        """Draw them; how much they vary, relative to the reals."""
        fakes = sample_images(generator, self.z, self.condition)
        save_png(sheet(fakes.unflatten(0, (ROWS, COLUMNS)), self.explaining), path, self.scale)
        return variety(fakes) / max(variety(self.reals), 1e-8)


def variety(images: torch.Tensor) -> float:
    """Standard deviation of a pixel over uint8 images [N, C, H, W], on average."""
    return float(images.float().std(dim=0).mean())
