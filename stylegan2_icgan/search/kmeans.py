"""Seeded k-means over rows that are read in blocks: for exemplars, and for the cells of an inverted file."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from stylegan2_icgan.search.unit_rows import highest_precision
from training.randomness import permutation, uniform

ITERATIONS, BLOCK = 20, 8192
SEEDING_ROUNDS, SEEDING_ROWS_PER_CENTRE = 8, 16

Read = Callable[[np.ndarray], torch.Tensor]  # int64 [B] points -> float32 [B, d], always on one device


class Clusters(NamedTuple):
    centres: torch.Tensor  # float32 [count, d]
    inertia: float  # mean squared distance of a point to its centre, before the last move


def kmeans(
    read: Read,
    num: int,
    count: int,
    seed: int = 0,
    iterations: int = ITERATIONS,
    start: torch.Tensor | None = None,
) -> Clusters:
    """Lloyd's k-means of `num` points; begun with points far from each other; a centre without points is moved.

    Memory is O(block + count), whatever the number of points. The same seed gives the same centres.

    Args:
        read: gives points by their ids 0 .. num - 1.
        count: centres, at most `num`.
        start: float32 [count, d], centres to begin with instead.

    Source: Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory, 1982.
    """
    if not 1 <= count <= num:
        raise ValueError(f"{count} centres of {num} points; expected 1 to {num}")
    centres, inertia = first_centres(read, num, count, seed) if start is None else start, 0.0
    for _ in range(iterations):
        sums, sizes = torch.zeros_like(centres), torch.zeros(count, device=centres.device)
        far_distance, far_point = torch.empty(0, device=centres.device), centres[:0]
        total = 0.0
        for start in range(0, num, BLOCK):
            points = read(np.arange(start, min(start + BLOCK, num)))
            squared, nearest = nearest_centre(points, centres)
            add_by_label(sums, sizes, points, nearest, by_product=points.device.type == "cuda")
            total += float(squared.double().sum())
            far_distance, far_point = _farthest(far_distance, far_point, squared, points, count)
        inertia = total / num
        empty = torch.nonzero(sizes == 0)[:, 0]
        moved = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
        free = min(len(empty), int((far_distance > 0).sum()))  # no more than there are points off their centre
        moved[empty[:free]] = far_point[:free]
        if torch.equal(moved, centres):
            break
        centres = moved
    return Clusters(centres, inertia)


def first_centres(read: Read, num: int, count: int, seed: int) -> torch.Tensor:
    """Distinct points float32 [count, d], drawn in a few rounds with probability proportional to the squared distance.

    A round draws many at once from the distances to all rounds before it, which takes products of matrices where
    k-means++ takes one pass a centre.

    Source: Arthur and Vassilvitskii, k-means++, SODA 2007; Bahmani et al., Scalable k-means++, VLDB 2012 (rounds).
    """
    pool = np.sort(permutation(num, seed)[: count * SEEDING_ROWS_PER_CENTRE])
    squared = np.full(len(pool), np.inf)
    chosen = np.zeros(len(pool), dtype=bool)
    centres: list[torch.Tensor] = []
    quotas = np.diff(np.linspace(0, count, min(SEEDING_ROUNDS, count) + 1).astype(np.int64))
    for number, quota in enumerate(quotas.tolist()):
        # The smallest of -log(u) / weight are a draw without replacement (Efraimidis and Spirakis, 2006).
        weights = np.ones(len(pool)) if number == 0 else squared
        chances = -np.log1p(-uniform(seed, number, pool)) / np.maximum(weights, 1e-30)
        chances[chosen] = np.inf
        new = np.sort(np.argpartition(chances, quota - 1)[:quota])
        chosen[new] = True
        centres.append(read(pool[new]))
        if number + 1 < len(quotas):
            for start in range(0, len(pool), BLOCK):
                part = slice(start, start + BLOCK)
                distance = nearest_centre(read(pool[part]), centres[-1])[0]
                squared[part] = np.minimum(squared[part], distance.double().cpu().numpy())
    return torch.cat(centres)


def nearest_centre(points: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance float32 [B] to the nearest centre of every point, and its number int64 [B]."""
    with highest_precision():
        scores = torch.addmm(centres.square().sum(dim=1), points, centres.T, alpha=-2)
    least = scores.min(dim=1)
    return (least.values + points.square().sum(dim=1)).clamp_min(0), least.indices


def add_by_label(
    sums: torch.Tensor, sizes: torch.Tensor, points: torch.Tensor, labels: torch.Tensor, by_product: bool
) -> None:
    """Add points [B, d] to the sums [C, d] of their labels [B], and count them.

    Args:
        by_product: with zeros and ones, for GPUs: index_add_ adds in any order there.
    """
    if by_product:
        members = torch.nn.functional.one_hot(labels, len(sums)).to(points.dtype)
        with highest_precision():
            sums += members.T @ points
        sizes += members.sum(dim=0)
    else:
        sums.index_add_(0, labels, points)
        sizes += torch.bincount(labels, minlength=len(sizes))


def _farthest(
    distance: torch.Tensor, point: torch.Tensor, new_distance: torch.Tensor, new_point: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The points farthest from their centres so far, farthest first: places for centres that lost all their points."""
    keep = min(64, count)
    top = new_distance.topk(min(keep, len(new_distance)))
    distance, point = torch.cat([distance, top.values]), torch.cat([point, new_point[top.indices]])
    order = distance.argsort(descending=True, stable=True)[:keep]
    return distance[order], point[order]
