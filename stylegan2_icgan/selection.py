"""Exemplar instances: a few that stand for all (IC-GAN section 3.2: 1,000 of them suffice on ImageNet)."""

import numpy as np
import torch

from training.randomness import permutation

MAX_TRAINING_ROWS_PER_CENTRE, ITERATIONS, BLOCK = 256, 20, 8192


def kmeans_exemplars(features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Ids of `count` rows: the nearest one to each centre of a seeded k-means, never the same twice.

    Args:
        features: float32 [N, d].
        count: how many; all rows when count >= N.

    Returns:
        int64 [min(count, N)], sorted.
    """
    if count >= len(features):
        return np.arange(len(features))
    order = permutation(len(features), seed)
    sample = np.sort(order[: count * MAX_TRAINING_ROWS_PER_CENTRE])
    points = torch.from_numpy(np.array(features[sample], dtype=np.float32))
    centres = torch.from_numpy(np.array(features[np.sort(order[:count])], dtype=np.float32))
    for _ in range(ITERATIONS):
        nearest = _nearest(points, centres)[1]
        sizes = torch.bincount(nearest, minlength=count).float()
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        moved = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved

    # Each centre takes its nearest row; a row wanted twice goes to the closer centre, the other draws a free one.
    best_distance, best_row = torch.full((count,), torch.inf), torch.zeros(count, dtype=torch.int64)
    for start in range(0, len(features), BLOCK):
        rows = torch.from_numpy(np.array(features[start : start + BLOCK], dtype=np.float32))
        distance, row = _nearest(centres, rows)
        closer = distance < best_distance
        best_distance[closer], best_row[closer] = distance[closer], row[closer] + start
    chosen = list(dict.fromkeys(best_row.tolist()))
    taken = set(chosen)
    chosen += [int(row) for row in order if row not in taken][: count - len(chosen)]
    return np.sort(np.array(chosen, dtype=np.int64))


def _nearest(points: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance (up to a constant of each point) and id of the nearest centre for every point."""
    offsets = centres.square().sum(dim=1)
    parts = [(offsets - 2 * block @ centres.T).min(dim=1) for block in points.split(BLOCK)]
    squared = points.square().sum(dim=1) + torch.cat([part.values for part in parts])
    return squared, torch.cat([part.indices for part in parts])
