"""What standing statistics of batch normalisation are taken of (BigGAN, arXiv 1809.11096, appendices)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from stylegan2_icgan.models import Model
from training.condition import Condition
from training.dataset import Draws
from training.randomness import hashed, integers
from training.sampling import z_from_seeds

_STREAM = 75  # of randomness


def standing_passes(
    model: Model, conditions: Callable[[Draws], Condition], count: int, batch: int, num: int
) -> Iterator[tuple[torch.Tensor, Condition]]:
    """Noise and conditions of the passes that statistics are taken of, as images have them, but of no image.

    Args:
        conditions: of draws among `count`.
        batch: images a pass.
        num: passes; BigGAN's 100 are `STANDING_PASSES`.
    """
    for start in range(0, num * batch, batch):
        ids = np.arange(start, start + batch)
        draws = Draws(integers(count, _STREAM, ids), hashed(_STREAM, ids, 1))
        seeds = (hashed(_STREAM, ids, 2) >> np.uint64(32)).tolist()
        z = z_from_seeds(seeds, model.generator.z_dim)
        yield z.to(model.device), conditions(draws).to(model.device)
