"""The training images nearest to conditioning instances, to be shown beside what is generated for them."""

from pathlib import Path

import numpy as np
import torch

from stylegan2_icgan.conditioning import Rows, check_same_extractor, open_data
from stylegan2_icgan.models import Model
from stylegan2_icgan.search.unit_rows import UnitRows
from stylegan2_icgan.store import default_folder, open_store
from torch_utils.command_line import UserError

BLOCK = 8192  # features compared at a time
SAME = 1 - 1e-6  # cosine from which on a feature is the instance's own


class Neighbourhood:
    """The images of --data with their stored features.

    Raises:
        UserError: a model without instances, other images than the model's, no stored features, or of another
            extractor.
    """

    def __init__(self, model: Model, data: Path, count: int) -> None:
        where = f"--nearest={count}"
        if not model.recipe.shape.h_dim:
            raise UserError(f"{where}: this model is not conditioned on instances; leave it out")
        self.dataset, self.count = open_data(model, data), count
        folder = default_folder(self.dataset)
        if not folder.is_dir():
            raise UserError(
                f"{where}: {data} has no instance features; make them with: python instance_tool.py make --data={data}"
            )
        check_same_extractor(model, folder, f"{where}: {folder}")
        self.unit = UnitRows(open_store(folder, self.dataset).features)
        if not 1 <= count <= len(self.unit):
            raise UserError(f"{where}: expected 1 to {len(self.unit)}, the images of {data}")

    def images(self, rows: Rows) -> torch.Tensor:
        """uint8 [N, count, C, H, W], nearest first."""
        ids = nearest(self.unit, rows.condition.h, self.count)
        return self.dataset.images(ids.flatten()).unflatten(0, ids.shape)


def nearest(unit: UnitRows, h: torch.Tensor, count: int) -> np.ndarray:
    """Ids int64 [N, count] of the rows with the largest cosine to h, float32 [N, h_dim], scored in float64.

    An image whose feature is h itself comes last: it is the instance, and shown already.
    """
    queries = h.double()
    queries = queries / queries.norm(dim=1, keepdim=True)
    scores = torch.empty(len(h), 0, dtype=torch.float64)
    ids = torch.empty(len(h), 0, dtype=torch.int64)
    for start in range(0, len(unit), BLOCK):
        keys = unit.block(start, min(start + BLOCK, len(unit)), torch.float64)
        cosines = queries @ keys.T
        cosines[cosines > SAME] -= 2  # behind all others
        scores = torch.cat([scores, cosines], dim=1)
        ids = torch.cat([ids, torch.arange(start, start + len(keys)).expand(len(h), -1)], dim=1)
        scores, best = scores.topk(min(count, scores.shape[1]), dim=1)
        ids = ids.gather(1, best)
    return ids.numpy()
