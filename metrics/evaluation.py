"""What metrics are computed of, whether that will do, and the features that several of them share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.detectors import Detector
from metrics.feature_stats import FeatureStats, GroupedStats
from metrics.image_sets import ImageSet, extract
from metrics.inception_score import SPLITS
from metrics.lpips import Lpips
from metrics.metric_names import REMEDIES, Metric, with_count
from metrics.reference_cache import ReferenceCache
from torch_utils.command_line import UserError
from torch_utils.files import Countdown


@dataclass
class Outcome:
    """What a metric says of one draw of generated images.

    Args:
        values: by full name, `pr50k3_full_recall`.
        errors: standard errors by the same names, where one draw gives any.
        num_real, num_fake: images that went in.
        notes: what a reader must know.
    """

    values: dict[str, float]
    errors: dict[str, float | None] = field(default_factory=dict)
    num_real: int = 0
    num_fake: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Sides:
    """What is compared, and with what.

    Args:
        real: the reference; None where no metric needs one.
        fake: what is judged.
        detector: images -> features.
        training: the images the generator was trained on, for strata.
        lpips: makes the perceptual distance when a metric asks for it.
        cache: of what is known about the reference.
        neighbours: size of a neighbourhood, for instance metrics.
        device: where distances between features are computed; on the CPU if it has no float64 (MPS).
        say: called with lines about progress.
    """

    real: ImageSet | None
    fake: ImageSet
    detector: Detector
    training: ImageSet | None = None
    lpips: Callable[[], Lpips] | None = None
    cache: ReferenceCache = field(default_factory=lambda: ReferenceCache(None))
    neighbours: int = 50
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    say: Callable[[str], None] = lambda line: None


def check(metric: Metric, sides: Sides) -> None:
    """Refuse what can't be computed, before anything is.

    Raises:
        UserError: something the metric needs is missing, or too few images.
    """
    zero = np.zeros(1, dtype=np.int64)
    real, fake = sides.real, sides.fake
    there: dict[str, Callable[[], bool]] = {
        "real": lambda: real is not None,
        "rows": lambda: True,
        "logits": lambda: sides.detector.description["name"] in ("inception", "random"),
        "generator": lambda: fake.copies(2) is not None,
        "paths": lambda: fake.has_paths,
        "classes": lambda: real is not None and real.classes(zero) is not None and fake.classes(zero) is not None,
        "training": lambda: sides.training is not None,
        "combinations": lambda: real is not None and real.seen(zero) is not None,
        "instances": lambda: fake.instances(zero) is not None,
    }
    missing = next((need for need in sorted(metric.needs) if not there[need]()), None)
    if missing:
        raise UserError(f"--metrics={metric.name} needs {REMEDIES[missing]}")
    if metric.kind == "fid_strata" and sides.training is not None and sides.training.classes(zero) is None:
        raise UserError(f"--metrics={metric.name} needs training data with class labels; --train-data has none")
    fewest = SPLITS if metric.kind == "is" else max(metric.k + 1, 2)
    if fake.num is not None and fake.num < metric.num:
        smaller = f"name a smaller count, for example {with_count(metric.name, fake.num)}"
        raise UserError(
            f"--metrics={metric.name} takes {metric.num:,} generated images, there are {fake.num:,}; "
            f"{smaller if fake.num >= fewest else f'expected at least {fewest}'}"
        )
    if metric.kind in ("instance_distance", "instance_pr"):
        fewest = sides.neighbours + 1
    if real is not None and real.num is not None and "real" in metric.needs and real.num < fewest:
        raise UserError(f"--metrics={metric.name} takes at least {fewest} reference images, there are {real.num}")
    if metric.kind in ("pr", "dc") and metric.num <= metric.k:
        raise UserError(
            f"--metrics={metric.name}: k = {metric.k} needs more than {metric.k} images; there are {metric.num}"
        )
    if metric.kind == "is" and metric.num < SPLITS:
        raise UserError(
            f"--metrics={metric.name}: the score is a mean over {SPLITS} splits; expected at least {SPLITS} images"
        )


class Evaluation:
    """Computes metrics of the same two sides; features that several of them need are made once.

    Args:
        metrics: all that will be asked for.
        sides: what is compared.

    Raises:
        UserError: one of them can't be computed here.
    """

    def __init__(self, metrics: Sequence[Metric], sides: Sides) -> None:
        for metric in metrics:
            check(metric, sides)
        self.sides = sides
        self._fake_rows: Tensor | None = None
        self._keep_fakes = max((m.num for m in metrics if "rows" in m.needs and m.kind != "instance_pr"), default=0)
        self._keep_reals = any("rows" in m.needs for m in metrics)
        self._memo: dict[str, Any] = {}

    # -- features -----------------------------------------------------------------------------------------------------

    def real_ids(self, limit: int | None) -> np.ndarray:
        """All reference images, or a fixed random subset of them, ascending."""
        num = self._real.num or 0
        if limit is None or limit >= num:
            return np.arange(num)
        return np.sort(np.random.Generator(np.random.Philox(key=0)).choice(num, limit, replace=False))

    def real_rows(self, limit: int | None) -> Tensor:
        """float32 [N, D]"""
        ids = self.real_ids(limit)
        name = f"real rows {len(ids)}"
        if name not in self._memo:
            make = lambda: {"rows": self._stack("real features", self._real, ids)}  # noqa: E731
            self._memo[name] = self.sides.cache(self._key("rows", len(ids)), make)["rows"]
        return self._memo[name]  # type: ignore[no-any-return]

    def real_moments(self, limit: int | None) -> FeatureStats:
        ids = self.real_ids(limit)
        name = f"real moments {len(ids)}"
        if name not in self._memo:

            def make() -> dict[str, Tensor]:
                stats = FeatureStats()
                if self._keep_reals:
                    stats.append(self.real_rows(limit))
                else:
                    self._stream("real features", self._real, ids, stats)
                mean, cov = stats.mean_and_cov()
                return {"num": torch.tensor(stats.num), "mean": mean, "cov": cov}

            found = self.sides.cache(self._key("moments", len(ids)), make)
            self._memo[name] = FeatureStats.from_moments(int(found["num"]), found["mean"], found["cov"])
        return self._memo[name]  # type: ignore[no-any-return]

    def fake_rows(self, num: int) -> Tensor:
        """float32 [num, D]"""
        if self._fake_rows is None or len(self._fake_rows) < num:
            self._fake_rows = self._stack("generated", self.sides.fake, np.arange(max(num, self._keep_fakes)))
        return self._fake_rows[:num]

    def fake_moments(self, num: int) -> list[FeatureStats]:
        """Of the first `num`, in groups."""
        name = f"fake moments {num}"
        if name not in self._memo:
            stats = GroupedStats(num)
            if num <= self._keep_fakes:
                stats.append(self.fake_rows(num))
            else:
                self._stream("generated", self.sides.fake, np.arange(num), stats)
            self._memo[name] = stats.groups()
        return self._memo[name]  # type: ignore[no-any-return]

    def rows_of(self, what: str, images: ImageSet, num: int) -> Tensor:
        """Features of the first images of another set, on no other metric's account."""
        return self._stack(what, images, np.arange(num))

    def on_device(self, *rows: Tensor) -> list[Tensor]:
        """Where distances are computed."""
        device = torch.device("cpu") if self.sides.device.type == "mps" else self.sides.device
        return [part.to(device) for part in rows]

    def progress(self, what: str, total: int) -> Countdown:
        return Countdown(what, total, self.sides.say)

    @property
    def _real(self) -> ImageSet:
        if self.sides.real is None:
            raise ValueError("a metric without a reference asked for one")
        return self.sides.real

    def _key(self, what: str, num: int) -> dict[str, Any]:
        """All that the features of the reference depend on; never a path."""
        about = {name: self._real.description.get(name) for name in ("content", "resize", "channels")}
        return about | {"what": what, "num": num, "detector": self.sides.detector.description}

    def _stack(self, what: str, images: ImageSet, ids: np.ndarray) -> Tensor:
        rows = torch.empty(len(ids), self.sides.detector.width)
        start = 0
        for part in extract(images, self.sides.detector, ids, self.progress(what, len(ids))):
            rows[start : start + len(part)] = part
            start += len(part)
        return rows

    def _stream(self, what: str, images: ImageSet, ids: np.ndarray, stats: FeatureStats | GroupedStats) -> None:
        for part in extract(images, self.sides.detector, ids, self.progress(what, len(ids))):
            stats.append(part)
