"""By what a generator with batch norm normalises what a script asks of it (BigGAN, arXiv 1809.11096, appendices)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

from stylegan2_icgan.models import Model
from torch_utils.command_line import UserError
from training.condition import Condition
from training.dataset import Draws
from training.networks.conditional_norm import STANDING_PASSES, batch_norm_mode, has_batch_norm
from training.randomness import hashed, integers
from training.sampling import z_from_seeds

_STREAM = 75  # of randomness


class Drawable(Protocol):
    """Conditions of draws among so many."""

    def __len__(self) -> int: ...

    def __call__(self, draws: Draws) -> Condition: ...


@contextmanager
def normalised(model: Model, mode: str, conditions: Drawable, batch: int, **how: float | None) -> Iterator[str | None]:
    """For the length of the block, let batch normalisation do as --bn-mode says, whatever is asked of the generator.

    Args:
        mode: of `batch_norm_mode`.
        conditions: what images are made of; standing statistics are of the same.
        batch: images a pass.
        how: truncation.

    Returns:
        what it does, in words; None where there is none.

    Raises:
        UserError: a choice where there is none.
    """
    if not has_batch_norm(model.generator):
        if mode != "running":
            raise UserError(f"--bn-mode={mode}: this generator has no batch normalisation; leave it out")
        yield None
        return
    standing = mode == "standing"
    with batch_norm_mode(model.generator, mode, _passes(model, conditions, batch) if standing else (), **how):
        yield f"standing, {STANDING_PASSES} batches of {batch}" if standing else mode


def _passes(model: Model, conditions: Drawable, batch: int) -> Iterator[tuple[torch.Tensor, Condition]]:
    """Noise and conditions as images have them, but of no image."""
    for start in range(0, STANDING_PASSES * batch, batch):
        ids = np.arange(start, start + batch)
        draws = Draws(integers(len(conditions), _STREAM, ids), hashed(_STREAM, ids, 1))
        seeds = (hashed(_STREAM, ids, 2) >> np.uint64(32)).tolist()
        z = z_from_seeds(seeds, model.generator.z_dim)
        yield z.to(model.device), conditions(draws).to(model.device)
