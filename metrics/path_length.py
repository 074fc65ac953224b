"""Perceptual path length: how far images move when the latent moves by a hair. arXiv:1812.04948, section 4.1."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

EPSILON = 1e-4  # of the way between two latents
TRIM = 0.01  # share of the shortest and of the longest steps left out, as the authors' code does


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Along the great circle from a to b, both brought to unit length; the result has length 1.

    Args:
        a, b: [N, D].
        t: [N, 1] in [0, 1].
    """
    a, b = (x / x.norm(dim=-1, keepdim=True) for x in (a, b))
    cosine = (a * b).sum(dim=-1, keepdim=True)
    angle = t * cosine.clamp(-1, 1).acos()
    across = b - cosine * a
    across = across / across.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    point = a * angle.cos() + across * angle.sin()
    unit: Tensor = point / point.norm(dim=-1, keepdim=True)
    return unit


def path_length(distances: Iterable[Tensor], epsilon: float = EPSILON) -> tuple[float, float]:
    """Mean of LPIPS / epsilon^2, without the lowest and the highest per cent.

    Args:
        distances: LPIPS of pairs of images whose latents lie epsilon apart, [N] each.

    Returns:
        the length, and its standard error.
    """
    lengths = torch.cat([rows.detach().cpu().double() for rows in distances]) / epsilon**2
    if len(lengths) < 2 or not lengths.isfinite().all():
        raise ValueError(f"got {len(lengths)} distances; expected at least 2, all of them finite")
    lower, upper = _at(lengths, TRIM, "lower"), _at(lengths, 1 - TRIM, "higher")
    kept = lengths[(lengths >= lower) & (lengths <= upper)]
    return float(kept.mean()), float(kept.std()) / math.sqrt(len(kept))


def _at(values: Tensor, share: float, towards: str) -> Tensor:
    """The value that this share of all lies below; `towards`: the one below or above where it falls between two."""
    place = share * (len(values) - 1)
    index = math.floor(place) if towards == "lower" else math.ceil(place)
    return values.sort().values[index]
