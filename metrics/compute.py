"""One function a kind of metric: which images it takes, and what it makes of their features."""

from collections.abc import Callable, Iterator
from functools import reduce
from operator import add

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import instance_metrics
from metrics.evaluation import Evaluation, Outcome
from metrics.feature_stats import FeatureStats, GroupedStats
from metrics.frechet import frechet_distance, frechet_error, rank_note
from metrics.image_sets import ImageSet, extract, shared
from metrics.inception_score import SPLITS, InceptionScore
from metrics.kernel_distance import kernel_distance
from metrics.lpips import BATCH, Lpips
from metrics.metric_names import Metric
from metrics.path_length import EPSILON, path_length
from metrics.precision_recall import density_coverage, precision_recall
from torch_utils.command_line import UserError

MOST_REAL_ROWS = 200_000  # of neighbour metrics without _full, as in StyleGAN2-ADA
MANY, FEW = 100, 20  # training images of a class: strata of ImageNet-LT (IC-GAN section 4.3)
SAMPLES_PER_INSTANCE = 10  # of instance_pr
MIN_CLASS_IMAGES = 2  # a class with fewer has no covariance


def compute(evaluation: Evaluation, metric: Metric) -> Outcome:
    """
    Raises:
        UserError: features or distances that are no numbers, or there turn out to be too few images of some class.
    """
    return _COMPUTE[metric.kind](evaluation, metric)


def _fid(e: Evaluation, m: Metric) -> Outcome:
    return _frechet(m.name, e.real_moments(None if m.full else m.num), e.fake_moments(m.num))


def _frechet(name: str, real: FeatureStats, groups: list[FeatureStats]) -> Outcome:
    fake = reduce(add, groups)
    note, error = rank_note(real, fake), frechet_error(real, groups)
    return Outcome({name: frechet_distance(real, fake)}, {name: error}, real.num, fake.num, [note] if note else [])


def _fid_where(e: Evaluation, m: Metric, real: np.ndarray, fake: np.ndarray, which: str) -> Outcome:
    """FID of the images that masks pick, of all reals and of the first `m.num` fakes."""
    if real.sum() < 2 or fake.sum() < 2:
        raise UserError(
            f"--metrics={m.name}: {int(real.sum())} reference and {int(fake.sum())} generated images {which}; expected "
            "at least 2 of each"
        )
    reals, fakes = e.real_rows(None)[torch.from_numpy(real)], e.fake_rows(m.num)[torch.from_numpy(fake)]
    outcome = _frechet(m.name, FeatureStats().append(reals), GroupedStats(len(fakes)).append(fakes).groups())
    outcome.notes.append(f"{which}: {int(fake.sum()):,} of {m.num:,} generated")
    return outcome


def _fid_strata(e: Evaluation, m: Metric) -> Outcome:
    """FID of classes by their number of training images (IC-GAN section 4.3): reals and fakes of these classes only."""
    counts = np.bincount(_classes(e.sides.training, None))
    wanted = {"many": counts >= MANY, "medium": (counts > FEW) & (counts < MANY), "few": counts <= FEW}[m.part]
    real, fake = _classes(e.sides.real, None), _classes(e.sides.fake, m.num)
    wanted = np.pad(wanted, (0, max(int(real.max()), int(fake.max())) + 1), constant_values=m.part == "few")
    return _fid_where(e, m, wanted[real], wanted[fake], f"are of classes with {m.part} training images")


def _fid_combination(e: Evaluation, m: Metric) -> Outcome:
    """FID of the images whose combination of classes is, or is not, among the training images (COCO-Stuff)."""
    wanted = _seen(e.sides.real) == (m.part == "seen")
    return _fid_where(
        e, m, wanted, wanted[_instances(e.sides.fake, m.num).numpy()], f"have {m.part} class combinations"
    )


def _fid_intra(e: Evaluation, m: Metric) -> Outcome:
    """Mean over classes of the FID of each, of the classes that have at least two images on both sides."""
    real, fake = _classes(e.sides.real, None), _classes(e.sides.fake, m.num)
    real_rows, fake_rows = e.real_rows(None), e.fake_rows(m.num)
    distances, left_out, smallest = [], 0, len(fake)
    for label in np.union1d(real, fake):
        masks = real == label, fake == label
        if min(int(mask.sum()) for mask in masks) < MIN_CLASS_IMAGES:
            left_out += 1
            continue
        parts = (rows[torch.from_numpy(mask)] for rows, mask in zip((real_rows, fake_rows), masks, strict=True))
        distances.append(frechet_distance(*(FeatureStats().append(part) for part in parts)))
        smallest = min(smallest, *(int(mask.sum()) for mask in masks))
    if not distances:
        raise UserError(f"--metrics={m.name}: no class has {MIN_CLASS_IMAGES} images on both sides; generate more")
    notes = [f"{len(distances)} classes, {left_out} left out for want of images"]
    if smallest <= e.sides.detector.width:
        notes.append(f"the smallest class has {smallest} images for {e.sides.detector.width} features: biased upwards")
    return Outcome({m.name: float(np.mean(distances))}, {}, len(real), len(fake), notes)


def _kid(e: Evaluation, m: Metric) -> Outcome:
    real, fake = e.on_device(e.real_rows(None if m.full else m.num), e.fake_rows(m.num))
    value, error = kernel_distance(real, fake)
    return Outcome({m.name: value}, {m.name: error}, len(real), len(fake))


def _is(e: Evaluation, m: Metric) -> Outcome:
    score = InceptionScore(m.num)
    for logits in extract(e.sides.fake, e.sides.detector, np.arange(m.num), e.progress("logits", m.num), logits=True):
        score.append(logits)
    mean, deviation = score.result()
    values = {f"{m.name}_mean": mean, f"{m.name}_std": deviation}
    return Outcome(values, {f"{m.name}_mean": deviation / SPLITS**0.5}, 0, m.num)


def _pr(e: Evaluation, m: Metric) -> Outcome:
    real, fake = e.on_device(e.real_rows(None if m.full else MOST_REAL_ROWS), e.fake_rows(m.num))
    precision, recall = precision_recall(real, fake, m.k)
    return _shares(m, real, fake, {"precision": (precision, len(fake)), "recall": (recall, len(real))})


def _dc(e: Evaluation, m: Metric) -> Outcome:
    real, fake = e.on_device(e.real_rows(None if m.full else MOST_REAL_ROWS), e.fake_rows(m.num))
    density, coverage = density_coverage(real, fake, m.k)
    outcome = _shares(m, real, fake, {"coverage": (coverage, len(real))})
    outcome.values = {f"{m.name}_density": density} | outcome.values
    return outcome


def _shares(m: Metric, real: Tensor, fake: Tensor, parts: dict[str, tuple[float, int]]) -> Outcome:
    """Shares of so many images, with binomial standard errors (images taken as independent)."""
    values = {f"{m.name}_{part}": share for part, (share, _) in parts.items()}
    errors: dict[str, float | None] = {f"{m.name}_{part}": (p * (1 - p) / n) ** 0.5 for part, (p, n) in parts.items()}
    return Outcome(values, errors, len(real), len(fake))


def _ppl(e: Evaluation, m: Metric) -> Outcome:
    lpips, (version, way) = _perceptual(e, m), m.part.split("_")

    def distances(ids: np.ndarray) -> Tensor:
        pair = e.sides.fake.path_pairs(ids, way[0], way[1:] == "full", EPSILON)
        a, b = (_at_most_256(images if version == "2" else _face(images)) for images in pair)
        apart: Tensor = lpips(a, b)
        return apart.cpu()

    value, error = path_length(_measured(e, "path length", m.num, distances))
    return Outcome({m.name: value}, {m.name: error}, 0, m.num)


def _lpips_instance(e: Evaluation, m: Metric) -> Outcome:
    """Mean LPIPS between two samples of the same condition, over `m.num` conditions: variety within an instance."""
    lpips, twins = _perceptual(e, m), e.sides.fake.copies(2)
    assert twins is not None

    def distances(ids: np.ndarray) -> Tensor:
        images = next(iter(twins.batches([np.stack([2 * ids, 2 * ids + 1], axis=1).reshape(-1)])))
        apart: Tensor = lpips(images[0::2], images[1::2])
        return apart.cpu()

    mean = instance_metrics.Mean.of(torch.cat(list(_measured(e, "pairs of samples", m.num, distances))))
    return Outcome({m.name: mean.value}, {m.name: mean.error}, 0, 2 * m.num)


def _measured(e: Evaluation, what: str, num: int, distances: Callable[[np.ndarray], Tensor]) -> Iterator[Tensor]:
    """Distances of the pairs 0 to num - 1, a few at a time, by all processes together."""
    pieces = [np.arange(start, min(start + BATCH, num)) for start in range(0, num, BATCH)]
    progress, done = e.progress(what, num), 0
    for rows in shared(len(pieces), lambda mine: (distances(pieces[number]) for number in mine)):
        if not rows.isfinite().all():
            raise UserError(
                f"{what}: LPIPS of pairs {done} and later is NaN or infinite; the generator or the weights are damaged"
            )
        done += len(rows)
        progress(done)
        yield rows


def _perceptual(e: Evaluation, m: Metric) -> Lpips:
    if e.sides.lpips is None:
        raise UserError(f"--metrics={m.name} needs LPIPS, which this caller has not")
    return e.sides.lpips()


def _face(images: Tensor) -> Tensor:
    """Where faces are in FFHQ: the middle half of the columns, rows 3/8 to 7/8 (StyleGAN's ppl_* metrics)."""
    eighth = images.shape[2] // 8
    return images[:, :, 3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth]


def _at_most_256(images: Tensor) -> Tensor:
    """Averaged down to 256 pixels, for which LPIPS was tuned."""
    factor = images.shape[2] // 256
    return F.avg_pool2d(images, factor) if factor > 1 else images


def _instance_distance(e: Evaluation, m: Metric) -> Outcome:
    real, fake = e.on_device(e.real_rows(None), e.fake_rows(m.num))
    mean = instance_metrics.relative_distance(real, fake, _instances(e.sides.fake, m.num), e.sides.neighbours)
    return _neighbourhood(e, {m.name: mean}, real, fake)


def _instance_pr(e: Evaluation, m: Metric) -> Outcome:
    num, copies = max(m.num // SAMPLES_PER_INSTANCE, 1), max(SAMPLES_PER_INSTANCE, m.k + 1)
    samples = e.sides.fake.copies(copies)
    assert samples is not None
    real, fake = e.on_device(e.real_rows(None), e.rows_of("samples of instances", samples, num * copies))
    instances = _instances(samples, num * copies)
    found = instance_metrics.neighbourhood_precision_recall(real, fake, instances, e.sides.neighbours, m.k)
    parts = {f"{m.name}_{part}": mean for part, mean in zip(("precision", "recall"), found, strict=True)}
    return _neighbourhood(e, parts, real, fake)


def _neighbourhood(e: Evaluation, parts: dict[str, instance_metrics.Mean], real: Tensor, fake: Tensor) -> Outcome:
    values, errors = ({name: mean[i] for name, mean in parts.items()} for i in (0, 1))
    note = f"neighbourhoods of {e.sides.neighbours} in the detector's features"
    return Outcome(values, dict(errors), len(real), len(fake), [note])


def _memorisation(e: Evaluation, m: Metric) -> Outcome:
    real, fake = e.on_device(e.real_rows(None), e.fake_rows(m.num))
    mean = instance_metrics.memorised(real, fake)
    return Outcome({m.name: mean.value}, {m.name: mean.error}, len(real), len(fake))


def _classes(images: ImageSet | None, num: int | None) -> np.ndarray:
    """int64, of the first `num` images, or of all."""
    assert images is not None
    found = images.classes(np.arange(images.num or 0 if num is None else num))
    assert found is not None  # checked before anything was computed
    return found


def _seen(images: ImageSet | None) -> np.ndarray:
    """bool, of all images."""
    assert images is not None
    found = images.seen(np.arange(images.num or 0))
    assert found is not None
    return found


def _instances(images: ImageSet, num: int) -> Tensor:
    """int64 [num]"""
    found = images.instances(np.arange(num))
    assert found is not None
    return torch.from_numpy(found)


_COMPUTE: dict[str, Callable[[Evaluation, Metric], Outcome]] = {
    "fid": _fid,
    "fid_strata": _fid_strata,
    "fid_combination": _fid_combination,
    "fid_intra": _fid_intra,
    "kid": _kid,
    "is": _is,
    "pr": _pr,
    "dc": _dc,
    "ppl": _ppl,
    "lpips_instance": _lpips_instance,
    "instance_distance": _instance_distance,
    "instance_pr": _instance_pr,
    "memorisation": _memorisation,
}
