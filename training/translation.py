"""Images through a translator: whole sets of them, and the sheets of a run."""

from pathlib import Path

import numpy as np
import torch

from training.dataset import Draws, SampleSource
from training.image_grid import save_png, sheet, sheet_scale
from training.randomness import hashed, permutation
from training.sampling import from_uint8, to_uint8

ROWS, PAIRS = 8, 2  # of a sheet; PAIRS in a row


@torch.no_grad()
def translate_images(generator: torch.nn.Module, images: torch.Tensor, direction: str, batch: int = 32) -> torch.Tensor:
    """uint8 [N, C, H, W] of one domain -> uint8 [N, C, H, W] of the other, on the CPU.

    Args:
        generator: a `Translator`.
        direction: 'AB' or 'BA'.
    """
    device = next(generator.parameters()).device
    parts = (generator(from_uint8(some.to(device)), direction) for some in images.split(batch))
    return torch.cat([to_uint8(some).cpu() for some in parts])


class PairPreview:
    """The same pairs on all sheets of a run: A, what is made of it, the B it should be; and the other way round.

    Columns of fakes*.png, for each pair: A, AB(A), B, BA(B). reals.png has A and B.
    """

    def __init__(self, source: SampleSource, z_dim: int) -> None:
        index = permutation(len(source), 0)[np.arange(ROWS * PAIRS) % len(source)]
        pairs = source[Draws(index, hashed(0, index))].image.cpu()
        self.a, self.b = pairs.chunk(2, dim=1)
        self.scale = sheet_scale(source.resolution)

    def save_reals(self, path: Path) -> None:
        self._save(path, self.a, self.b)

    def save_fakes(self, path: Path, generator: torch.nn.Module) -> dict[str, float]:
        fake_b, fake_a = translate_images(generator, self.a, "AB"), translate_images(generator, self.b, "BA")
        self._save(path, self.a, fake_b, self.b, fake_a)
        return {}

    def _save(self, path: Path, *columns: torch.Tensor) -> None:
        save_png(sheet(torch.stack(columns, dim=1).flatten(0, 1).unflatten(0, (ROWS, -1))), path, self.scale)
