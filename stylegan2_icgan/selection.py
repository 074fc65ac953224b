"""Exemplar instances: a few that stand for all (IC-GAN section 3.2: 1,000 of them suffice on ImageNet)."""

import numpy as np
import torch

from stylegan2_icgan.search.kmeans import BLOCK, kmeans, nearest_centre
from stylegan2_icgan.search.unit_rows import UnitRows
from torch_utils.command_line import UserError, nearest
from training.randomness import permutation

MAX_TRAINING_ROWS_PER_CENTRE = 256
HOW = ("kmeans", "per-class", "random")


def select(
    features: np.ndarray,
    how: str,
    count: int,
    class_ids: np.ndarray | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> np.ndarray:
    """Ids of exemplars, int64, sorted, never the same twice.

    Args:
        features: float16 or float32 [N, d], in memory or memory-mapped.
        how: kmeans, per-class or random.
        count: how many; with per-class of every class.
        class_ids: int64 [N], for per-class.

    Raises:
        UserError: an unknown way, a count below 1, or no classes where they are needed.
    """
    if count < 1:
        raise UserError(f"{count} exemplars; expected at least 1")
    if how == "kmeans":
        return kmeans_exemplars(features, count, seed, device)
    if how == "random":
        return random_exemplars(len(features), count, seed)
    if how != "per-class":
        raise UserError(f"exemplars by {how!r}; expected one of {', '.join(HOW)}.{nearest(how, HOW)}")
    if class_ids is None:
        raise UserError("exemplars per class need class labels, and the data has none; select them by kmeans or random")
    return per_class_exemplars(features, class_ids, count, seed, device)


def kmeans_exemplars(features: np.ndarray, count: int, seed: int = 0, device: torch.device | None = None) -> np.ndarray:
    """Ids of `count` rows: the nearest one to each centre of a seeded k-means of the normalised rows.

    Returns:
        int64 [min(count, N)], sorted; all rows when count >= N.
    """
    if count >= len(features):
        return np.arange(len(features))
    return _nearest_to_centres(UnitRows(features, device), np.arange(len(features)), count, seed)


def per_class_exemplars(
    features: np.ndarray, class_ids: np.ndarray, per_class: int, seed: int = 0, device: torch.device | None = None
) -> np.ndarray:
    """The same within every class: `per_class` rows of each, or all of a class that has no more.

    Args:
        class_ids: int64 [N].

    Returns:
        int64, sorted.
    """
    unit = UnitRows(features, device)
    order = np.argsort(class_ids, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(class_ids[order])) + 1)
    chosen = [rows if len(rows) <= per_class else _nearest_to_centres(unit, rows, per_class, seed) for rows in members]
    return np.sort(np.concatenate(chosen))


def random_exemplars(num: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` of `num` rows, uniform, int64, sorted; all when count >= num."""
    return np.sort(permutation(num, seed)[:count])


def _nearest_to_centres(unit: UnitRows, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Of some rows, `count` different ones, fewer than there are: the nearest to each centre of their k-means."""
    order = rows[permutation(len(rows), seed)]
    sample = np.sort(order[: count * MAX_TRAINING_ROWS_PER_CENTRE])
    centres = kmeans(lambda ids: unit.take(sample[ids]), len(sample), count, seed).centres

    # A row wanted by several centres stands for all of them; rows at random make up the number.
    best_distance = torch.full((count,), torch.inf, device=centres.device)
    best_row = np.zeros(count, dtype=np.int64)
    for start in range(0, len(rows), BLOCK):
        ids = rows[start : start + BLOCK]
        distance, place = nearest_centre(centres, unit.take(ids))
        closer = (distance < best_distance).cpu().numpy()
        best_row[closer] = ids[place.cpu().numpy()[closer]]
        best_distance = torch.minimum(distance, best_distance)
    chosen = np.unique(best_row)
    free = order[~np.isin(order, chosen)]
    return np.sort(np.concatenate([chosen, free[: count - len(chosen)]]))
