"""How far images are from the targets: LPIPS where its weights are at hand, else a pyramid of pixels."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.lpips import HEADS, SMALLEST, VGG16, Lpips
from metrics.resizing import with_colour
from torch_utils.command_line import UserError
from torch_utils.ops.upfirdn2d import downsample2d, setup_filter, upsample2d

CHOICES = ("auto", "lpips", "pyramid")
LARGEST = 256  # pixels LPIPS is shown a side; larger images are averaged down (StyleGAN2, appendix D)
BINOMIAL = (1, 4, 6, 4, 1)  # Burt and Adelson's filter for a = 0.375
COARSEST = 4  # pixels a side of the last level


class Distance(Protocol):
    """float32 [N, C, R, R] about [-1, 1] -> float32 [N], differentiable: the distance of each to its target."""

    name: str

    def __call__(self, images: Tensor) -> Tensor: ...


class PyramidDistance:
    """Mean absolute difference of the levels of Laplacian pyramids, summed.

    P. Burt, E. Adelson: The Laplacian pyramid as a compact image code, IEEE Trans. Communications 31(4), 1983. A
    level holds what lies within an octave of spatial frequency, so shapes and details weigh alike; no weights needed.
    """

    name = "pyramid"

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.filter = setup_filter(BINOMIAL, targets.device)

    def __call__(self, images: Tensor) -> Tensor:
        rest = images - self.targets  # the pyramid of a difference is the difference of the pyramids
        total = torch.zeros(len(rest), device=rest.device)
        while rest.shape[-1] > COARSEST:
            smaller = downsample2d(rest, self.filter)
            total = total + (rest - upsample2d(smaller, self.filter)).abs().mean(dim=(1, 2, 3))
            rest = smaller
        return total + rest.abs().mean(dim=(1, 2, 3))


class LpipsDistance:
    """LPIPS (arXiv 1801.03924, equation 1); what the network makes of the targets is computed once."""

    def __init__(self, lpips: Lpips, targets: Tensor) -> None:
        self.lpips = lpips
        self.name = lpips.description["name"]
        with torch.no_grad():
            self.targets = list(self._units(targets))

    def __call__(self, images: Tensor) -> Tensor:
        total = torch.zeros(len(images), device=images.device)
        for level, (units, target) in enumerate(zip(self._units(images), self.targets, strict=True)):
            total = total + self.lpips.apart(level, units, target)
        return total

    def _units(self, images: Tensor) -> Iterator[Tensor]:
        x = with_colour(images)
        if x.shape[-1] > LARGEST:
            x = F.interpolate(x, size=(LARGEST, LARGEST), mode="area")
        return self.lpips.units(x)


def make_distance(choice: str, weights: Sequence[Path], targets: Tensor) -> Distance:
    """The distance that was asked for.

    Args:
        choice: of CHOICES; auto is LPIPS if its weights were named or are in torch's cache, else the pyramid.
        weights: local files of LPIPS.
        targets: float32 [N, C, R, R], [-1, 1], on the device to compute on.

    Raises:
        UserError: weights without use, or LPIPS without weights or for images too small for it.
    """
    if choice == "pyramid" and weights:
        raise UserError("--distance=pyramid takes no weights; leave --lpips-weights out, or --distance")
    resolution = targets.shape[-1]
    if choice == "auto" and not weights:
        at_hand = resolution >= SMALLEST and HEADS.cached() is not None and VGG16.cached() is not None
        choice = "lpips" if at_hand else "pyramid"
    if choice == "pyramid":
        return PyramidDistance(targets)
    if resolution < SMALLEST:
        raise UserError(
            f"--distance=lpips takes images of {SMALLEST} pixels or more, the model's have {resolution}; use "
            "--distance=pyramid"
        )
    return LpipsDistance(Lpips.load(weights, targets.device), targets)
