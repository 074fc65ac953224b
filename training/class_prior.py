"""Drawing by class: a prior over classes with a temperature, and an image of the class drawn."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from torch_utils.command_line import UserError
from training.randomness import uniform

_CLASS, _IMAGE = 3, 4  # streams of randomness; InstanceDataset has others


def check_sampling(sampling: str, class_temperature: float | None, cond: str) -> None:
    """Refuse flags that contradict each other, before anything is read.

    Raises:
        UserError: a temperature that is not above 0, or without a class prior; a class prior without classes.
    """
    if class_temperature is not None and not class_temperature > 0:  # NaN, too
        raise UserError(
            f"--class-temperature={class_temperature:g}: expected a number above 0; 1 draws classes as often as the "
            "data has them, inf (or leaving it out) all alike"
        )
    if class_temperature is not None and sampling != "class":
        raise UserError(
            f"--class-temperature={class_temperature:g} given with --sampling={sampling}, which draws no classes; add "
            "--sampling=class, or leave it out"
        )
    if sampling == "class" and "class" not in cond:
        raise UserError(
            f"--sampling=class draws classes, but --cond={cond} has none; use --cond=class, --cond=instance+class, or "
            "--sampling=instance"
        )


def class_prior(counts: np.ndarray, temperature: float | None) -> np.ndarray:
    """p(y) in proportion to p_y^(1/T), with p_y the share of class y in the data (IC-GAN, long-tailed experiments).

    Args:
        counts: int64 [K], images of each class, all above 0.
        temperature: T; 1 gives the shares of the data, infinity or None all classes alike.

    Returns:
        float64 [K], sums to 1.
    """
    logs = np.log(counts)
    with np.errstate(over="ignore"):  # a tiny T leaves the largest class alone
        weights = np.exp((logs - logs.max()) / (math.inf if temperature is None else temperature))
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class Lists:
    """Lists of numbers of different lengths, one behind the other: list r is items[starts[r] : starts[r + 1]]."""

    starts: np.ndarray  # int64 [R + 1]
    items: np.ndarray  # integers [starts[R]]

    @classmethod
    def grouped(cls, groups: np.ndarray, num_groups: int, items: np.ndarray) -> Self:
        """List g has the items whose group is g, in their order. `groups` int64 [N], `items` integers [N]."""
        starts = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=num_groups))])
        return cls(starts, items[np.argsort(groups, kind="stable")])

    def lengths(self, rows: np.ndarray | slice = np.s_[:]) -> np.ndarray:
        """int64, how many items the lists of these rows have."""
        return np.asarray(self.starts[1:][rows] - self.starts[:-1][rows])

    def draw(self, rows: np.ndarray, u: np.ndarray) -> np.ndarray:
        """int64, one item of each of these lists, none of them empty; `u` in [0, 1) says which."""
        lengths = self.lengths(rows)
        place = np.minimum((u * lengths).astype(np.int64), lengths - 1)
        return np.asarray(self.items[self.starts[rows] + place], dtype=np.int64)


class ClassDraws:
    """Draws class y from the prior over the classes that have images, then an image uniform among those of y.

    Args:
        class_ids: int64 [N], class of every image.
        temperature: of the prior; None: all classes alike.
        drawable: bool [N], the images that may be drawn; a class that has none of them draws from all of its own. It
            changes nothing about how often a class is drawn.
    """

    def __init__(
        self, class_ids: np.ndarray, temperature: float | None = None, drawable: np.ndarray | None = None
    ) -> None:
        self.classes, rows, counts = np.unique(class_ids, return_inverse=True, return_counts=True)
        self.probabilities = class_prior(counts, temperature)
        edges = np.cumsum(self.probabilities)
        self._edges = edges / edges[-1]  # the last is 1 exactly, which no draw reaches
        kept = np.ones(len(rows), dtype=bool) if drawable is None else drawable
        kept = kept | (np.bincount(rows[kept], minlength=len(counts)) == 0)[rows]
        ids = np.flatnonzero(kept).astype(np.int32)
        self._members = Lists.grouped(rows[kept], len(counts), ids)

    def images(self, seed: np.ndarray) -> np.ndarray:
        """int64 [n], an image for every seed (uint64 [n])."""
        rows = np.searchsorted(self._edges, uniform(seed, _CLASS), side="right")
        return self._members.draw(rows, uniform(seed, _IMAGE))
