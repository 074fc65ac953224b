"""Leading principal directions of features: short vectors whose products are close to those of the long ones."""

import numpy as np
import torch

from stylegan2_icgan.search.unit_rows import UnitRows, highest_precision
from training.randomness import permutation

SAMPLE, BLOCK = 16384, 4096


def fit_basis(unit: UnitRows, dim: int, seed: int = 0) -> torch.Tensor:
    """Orthonormal float32 [d, min(dim, d)]: the directions that keep most of the squared length, from a sample.

    The mean is not taken off: products are wanted, not variances.
    """
    sample = np.sort(permutation(len(unit), seed)[:SAMPLE])
    moment = torch.zeros(unit.h_dim, unit.h_dim, device=unit.device)
    with highest_precision():
        for start in range(0, len(sample), BLOCK):
            rows = unit.take(sample[start : start + BLOCK])
            moment += rows.T @ rows
    _, vectors = torch.linalg.eigh(moment)
    return vectors[:, -dim:].flip(1).contiguous()


def project(unit: UnitRows, basis: torch.Tensor) -> np.ndarray:
    """All rows in the basis, float32 [N, dim] in memory."""
    projected = np.empty((len(unit), basis.shape[1]), dtype=np.float32)
    with highest_precision():
        for start in range(0, len(unit), BLOCK):
            rows = unit.block(start, min(start + BLOCK, len(unit)))
            projected[start : start + BLOCK] = (rows @ basis).cpu().numpy()
    return projected
