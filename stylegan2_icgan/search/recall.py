"""How much of the truth an approximate search finds."""

import numpy as np

from stylegan2_icgan.search.exact import ExactSearch
from stylegan2_icgan.search.unit_rows import UnitRows
from training.randomness import permutation

TOLERANCE = 1e-6  # of a distance: which of several equally near ones are named is a matter of taste


class Truth:
    """The exact neighbours of a sample of rows, to measure searches against.

    Args:
        sample: how many rows; all when there are fewer.
    """

    def __init__(self, unit: UnitRows, k: int, sample: int, seed: int = 0) -> None:
        self.rows = np.sort(permutation(len(unit), seed)[:sample])
        self._farthest = ExactSearch(unit, k).search(self.rows)[1][:, -1:]

    def recall(self, distances: np.ndarray) -> float:
        """Share of the distances found, float32 [sample, k], that are no greater than the true k-th."""
        return float(self._right(distances).mean())

    def surely(self, distances: np.ndarray) -> float:
        """What the recall of all rows exceeds, as far as a sample can tell: two standard errors below its own."""
        right = self._right(distances).mean(axis=1)
        return float(right.mean() - 2 * right.std() / len(right) ** 0.5)

    def _right(self, distances: np.ndarray) -> np.ndarray:
        return distances <= self._farthest * (1 + TOLERANCE) + TOLERANCE
