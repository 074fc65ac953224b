"""Are these features any good? What can be said without training: labels, hubs, duplicates, spread."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stylegan2_icgan.search.projection import BLOCK
from stylegan2_icgan.search.unit_rows import UnitRows
from training.randomness import permutation

AGREEMENT_AT = (1, 5, 10)
DUPLICATE_DISTANCE = 0.01  # between unit vectors: an image encoded again, hardly ever another image
NAMED = 5  # of a kind
PERCENTILES = (1, 25, 50, 75, 99)
SAMPLE = 4096  # rows for the spectrum and for the spread of similarities
HUBBY, COLLAPSED = 5.0, 0.9  # skewness and mean cosine from which the report warns


def quality(
    features: np.ndarray,
    neighbours: np.ndarray,
    radii: np.ndarray,
    class_ids: np.ndarray | None = None,
    checksums: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measures of the features of a data set and of its neighbour graph, as JSON.

    Args:
        features: float16 or float32 [N, d].
        neighbours: integer [N, k], nearest first, the row itself never among them.
        radii: float [N, k], Euclidean distances to them.
        class_ids: int64 [N].
        checksums: [N], equal for files that are equal byte by byte.
    """
    unit = UnitRows(features)
    return {
        "num_images": len(features),
        "h_dim": features.shape[1],
        "k": neighbours.shape[1],
        "label_agreement": None if class_ids is None else label_agreement(neighbours, class_ids),
        "hubness": hubness(neighbours),
        "duplicates": duplicates(neighbours, radii, checksums),
        "radius": {str(p): float(value) for p, value in zip(PERCENTILES, _percentiles(radii[:, -1]), strict=True)},
        "cosine": cosine_spread(unit),
        "effective_dim": effective_dim(unit),
    }


def label_agreement(neighbours: np.ndarray, class_ids: np.ndarray) -> dict[str, float]:
    """Mean share of the first n neighbours that have the class of the row, n = 1, 5, 10 and k.

    `chance` is the same for neighbours drawn at random: two different rows have one class with probability
    sum_c n_c (n_c - 1) / (N (N - 1)).
    """
    k, num = neighbours.shape[1], len(class_ids)
    same = class_ids[neighbours] == class_ids[:, None]
    sizes = np.bincount(class_ids).astype(np.float64)
    result = {str(n): float(same[:, :n].mean()) for n in sorted({*(n for n in AGREEMENT_AT if n < k), k})}
    return result | {"chance": float((sizes * (sizes - 1)).sum() / (num * (num - 1)))}


def hubness(neighbours: np.ndarray) -> dict[str, Any]:
    """How unevenly rows occur as neighbours of others; N_k of a row is in how many of the k-neighbour lists it is.

    skewness: third standardised moment of N_k; 0 for even use, large when a few rows are near everything.
    largest: the greatest N_k (its mean is k), and its row.
    unused: share of rows with N_k = 0; an instance-conditional model never sees their images.

    Source: Radovanovic, Nanopoulos, Ivanovic, Hubs in space, JMLR 11, 2010, section 2 (S_{N_k}).
    """
    counts = np.bincount(neighbours.reshape(-1), minlength=len(neighbours)).astype(np.float64)
    deviation = counts - counts.mean()
    spread = deviation.std()
    return {
        "skewness": float((deviation**3).mean() / spread**3) if spread > 0 else 0.0,
        "largest": int(counts.max()),
        "largest_row": int(counts.argmax()),
        "unused": float((counts == 0).mean()),
    }


def duplicates(neighbours: np.ndarray, radii: np.ndarray, checksums: np.ndarray | None) -> dict[str, Any]:
    """Pairs of rows that are hardly two.

    near_pairs: pairs of rows whose features are nearer than `distance`, found in the neighbour lists (a row with more
        than k duplicates has more pairs than these), and the nearest few.
    equal_files: how many files repeat an earlier one byte by byte, and the first few with the file they repeat; None
        without checksums.
    """
    row, column = np.nonzero(radii < DUPLICATE_DISTANCE)
    other = neighbours[row, column].astype(np.int64)
    pairs = np.stack([np.minimum(row, other), np.maximum(row, other)], axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    nearest = np.argsort(radii[row, column][first], kind="stable")[:NAMED]
    report: dict[str, Any] = {
        "distance": DUPLICATE_DISTANCE,
        "near_pairs": len(pairs),
        "nearest": pairs[nearest].tolist(),
        "equal_files": None,
        "equal": [],
    }
    if checksums is not None:
        _, first, which = np.unique(checksums, return_index=True, return_inverse=True)
        repeated = np.flatnonzero(first[which] != np.arange(len(checksums)))
        report["equal_files"] = len(repeated)
        report["equal"] = [[int(first[which[i]]), int(i)] for i in repeated[:NAMED]]
    return report


def cosine_spread(unit: UnitRows) -> dict[str, float]:
    """Cosine similarities of pairs of different rows: mean over all pairs, and percentiles over those of a sample.

    For unit vectors the mean is (|sum_i x_i|^2 - N) / (N (N - 1)). Near 1: the features have collapsed, and neighbours
    are a matter of noise.
    """
    num, total = len(unit), torch.zeros(unit.h_dim, dtype=torch.float64)
    for start in range(0, num, BLOCK):
        total += unit.block(start, min(start + BLOCK, num)).sum(dim=0, dtype=torch.float64).cpu()
    sample = _sample(unit)
    similarity = (sample @ sample.T).numpy()[np.triu_indices(len(sample), 1)]
    mean = float((total @ total - num) / (num * (num - 1)))
    percentiles = {str(p): float(value) for p, value in zip(PERCENTILES, _percentiles(similarity), strict=True)}
    return {"mean": mean} | percentiles


def effective_dim(unit: UnitRows) -> float:
    """Participation ratio (sum l)^2 / sum l^2 of the eigenvalues l of the covariance: d for a ball, 1 for a line.

    On a sample of n rows X, centred: trace(X X^T)^2 / |X X^T|_F^2; it can't exceed n - 1.

    Source: Gao et al., A theory of multineuronal dimensionality, dynamics and measurement, bioRxiv 214262, 2017.
    """
    sample = _sample(unit).double()
    sample -= sample.mean(dim=0)
    gram = sample @ sample.T if len(sample) < unit.h_dim else sample.T @ sample
    energy = float(gram.square().sum())
    return float(gram.trace()) ** 2 / energy if energy > 0 else 0.0


def quality_lines(report: dict[str, Any], names: Sequence[str] | None = None) -> list[str]:
    """The report in words, one line each.

    Args:
        names: [N] file names; row numbers without.
    """

    def name(row: int) -> str:
        return names[row] if names is not None else f"row {row}"

    agreement, hubs, twins = report["label_agreement"], report["hubness"], report["duplicates"]
    radius, cosine = report["radius"], report["cosine"]
    lines = [f"{report['num_images']:,} images, features {report['h_dim']} wide, {report['k']} neighbours each"]
    if agreement is not None:
        at = ", ".join(f"{share:.3f} of {n}" for n, share in agreement.items() if n != "chance")
        lines.append(f"neighbours of the same class: {at} (by chance {agreement['chance']:.3f})")
    lines.append(
        f"hubs: skewness {hubs['skewness']:.2f}, most often a neighbour: {name(hubs['largest_row'])} "
        f"({hubs['largest']:,} times, the mean is {report['k']}), never: {hubs['unused']:.1%} of the images"
    )
    if hubs["skewness"] > HUBBY:
        lines.append("warning: a few images are neighbours of very many; other features would tell more apart")
    lines.append(f"near duplicates: {twins['near_pairs']:,} pairs nearer than {twins['distance']}")
    lines += [f"  {name(a)} and {name(b)}" for a, b in twins["nearest"]]
    if twins["equal_files"] is not None:
        lines.append(f"equal files: {twins['equal_files']:,} repeat another")
        lines += [f"  {name(b)} repeats {name(a)}" for a, b in twins["equal"]]
    lines.append("radius of the neighbourhood, percentiles: " + _listed(radius))
    lines.append(f"cosine similarity of two images: mean {cosine['mean']:.3f}, percentiles: {_listed(cosine)}")
    if cosine["mean"] > COLLAPSED:
        lines.append("warning: all features are nearly the same; neighbours are a matter of noise")
    lines.append(f"effective dimension: {report['effective_dim']:.1f} of {report['h_dim']}")
    return lines


def _listed(percentiles: dict[str, float]) -> str:
    return ", ".join(f"{value:.3f} ({p} %)" for p, value in percentiles.items() if p != "mean")


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(np.asarray(values, dtype=np.float32), PERCENTILES)


def _sample(unit: UnitRows) -> torch.Tensor:
    return unit.take(np.sort(permutation(len(unit), 0)[:SAMPLE])).cpu()
