"""What instance conditioning adds to measure: samples against their instance, its neighbourhood, the training images.

All take features of the reference images and of the samples, and for each sample the reference row it is conditioned
on. The neighbourhood of an instance is its k nearest other reference rows, its radius the distance to the k-th.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metrics.distances import Rows, nearest, ranges, squared_radii

QUERY_ROWS = 512


class Mean(NamedTuple):
    """A mean over samples and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        values = values.double()
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), error)


def relative_distance(real: Tensor, fake: Tensor, instance: Tensor, k: int) -> Mean:
    """Mean of |f - x_i| / R_i: below 1 the sample lies inside its instance's neighbourhood.

    Args:
        real: [N, D], N > k.
        fake: [M, D].
        instance: int64 [M], the row of `real` each sample is conditioned on.
        k: size of the neighbourhood.

    Raises:
        ValueError: sizes that do not fit. A neighbourhood of radius 0 (k copies of one image) counts as infinitely far
            unless the sample is a copy, too; if there is one, the mean says so by being infinite.
    """
    reals, fakes, instance = _checked(real, fake, instance, k)
    radii = squared_radii(reals, k)
    ratios = torch.cat(
        [
            _ratio((fakes.block(rows) - reals.block(instance[rows])).square().sum(dim=1), radii[instance[rows]])
            for rows in ranges(len(fakes), QUERY_ROWS)
        ]
    )
    return Mean.of(ratios)


def neighbourhood_precision_recall(
    real: Tensor, fake: Tensor, instance: Tensor, k: int, balls: int = 3
) -> tuple[Mean, Mean]:
    """Improved precision and recall (arXiv:1904.06991) inside each neighbourhood, averaged over the instances.

    The reals of an instance are itself and its k nearest neighbours; the fakes are its samples. The balls of both are
    taken within these two small sets.

    Args:
        real: [N, D], N > k.
        fake: [M, D].
        instance: int64 [M]; each instance in it with more than `balls` samples.
        k: size of the neighbourhood, at least `balls`.
        balls: neighbours that a ball reaches to.

    Returns:
        precision and recall.
    """
    reals, fakes, instance = _checked(real, fake, instance, k)
    ids, counts = instance.unique(return_counts=True)
    if k < balls or int(counts.min()) <= balls:
        given = f"k = {k} and {int(counts.min())} samples an instance"
        raise ValueError(
            f"got {given}; expected at least {balls} and {balls + 1} for balls to the {balls}-th neighbour"
        )
    precision, recall = [], []
    for some in ids.split(QUERY_ROWS):
        _, near = nearest(Rows(reals.features[some], reals.centre), reals, k, own=some)
        for row, i in enumerate(some.tolist()):
            x = reals.block(torch.cat([some[row : row + 1], near[row]]))
            y = fakes.block((instance == i).nonzero()[:, 0])
            apart = torch.cdist(y, x, compute_mode="donot_use_mm_for_euclid_dist")
            precision.append((apart <= _radii(x, balls)).any(dim=1).double().mean())
            recall.append((apart <= _radii(y, balls)[:, None]).any(dim=0).double().mean())
    return Mean.of(torch.stack(precision)), Mean.of(torch.stack(recall))


def memorised(real: Tensor, fake: Tensor) -> Mean:
    """Share of samples closer to one training image than that image is to its own nearest other image.

    Copies of training images count, also of one that is there twice, and give 1. Images drawn afresh from the data's
    own distribution give the probability that nearest neighbours are mutual: 2/3 on a line, 0.62 in the plane, towards
    1/2 in many dimensions.

    Args:
        real: [N, D] training images, N >= 2.
        fake: [M, D] samples.
    """
    reals = Rows(real)
    fakes = Rows(fake.to(reals.device), reals.centre)
    squared, which = nearest(fakes, reals, 1)
    return Mean.of(((squared < squared_radii(reals, 1)[which]) | (squared == 0)).double())


def _checked(real: Tensor, fake: Tensor, instance: Tensor, k: int) -> tuple[Rows, Rows, Tensor]:
    if len(instance) != len(fake) or not len(fake):
        raise ValueError(f"got {len(fake)} samples and {len(instance)} instances; expected as many, at least 1")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"got real features {real.shape[1]} wide and fake {fake.shape[1]}; expected one width")
    if not 1 <= k < len(real) or int(instance.min()) < 0 or int(instance.max()) >= len(real):
        raise ValueError(f"got k = {k} and instances up to {int(instance.max())}; there are {len(real)} real features")
    reals = Rows(real)
    return reals, Rows(fake.to(reals.device), reals.centre), instance.to(reals.device)


def _ratio(squared: Tensor, radius: Tensor) -> Tensor:
    """sqrt(a / b), with 0 / 0 = 0."""
    return torch.where(squared == 0, squared, squared / radius).sqrt()


def _radii(x: Tensor, k: int) -> Tensor:
    """[N], distance of each row to its k-th nearest other row; for sets of some dozens."""
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    return apart.topk(k, largest=False).values[:, -1]
