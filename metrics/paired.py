"""How far a translated image is from the one it should be: metrics of pairs, one value for each.

Images are uint8, or float 0..255, [N, C, H, W]; both of a pair have one shape. Arithmetic is float64.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.lpips import SMALLEST, Lpips
from torch_utils.command_line import UserError, nearest

WHITE = 255.0  # the range of pixel values, "L" in SSIM
WINDOW, SIGMA = 11, 1.5  # pixels, of SSIM's Gaussian
K1, K2 = 0.01, 0.03  # keep SSIM's quotients from 0 / 0

Distance = Callable[[Tensor, Tensor], Tensor]  # (images, targets) -> [N]


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of pixel values, float64 [N], 0..65025; less is better."""
    return (a.double() - b.double()).square().mean(dim=[1, 2, 3])


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """10 log10(255^2 / MSE), decibels, float64 [N]; more is better, and inf where the images are equal."""
    return 10 * (WHITE**2 / mse(a, b)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, float64 [N], at most 1; more is better.

    Wang, Bovik, Sheikh and Simoncelli, Image quality assessment, IEEE Transactions on Image Processing 13(4), 2004,
    equations 13 to 17: an 11x11 Gaussian window, at every place where it lies inside the image. The mean over places
    and over channels; images are not made smaller first.

    Raises:
        UserError: less than 11 pixels a side.
    """
    check_size("ssim", min(a.shape[2:]))
    x, y = a.double(), b.double()
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * WHITE) ** 2, (K2 * WHITE) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dim=[1, 2, 3])


def _blurred(images: Tensor) -> Tensor:
    """Weighted by the window, [N, C, H - 10, W - 10]."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    window = (-(offsets**2) / (2 * SIGMA**2)).exp()
    window /= window.sum()
    flat = images.flatten(0, 1).unsqueeze(1)
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    blurred: Tensor = flat.squeeze(1).unflatten(0, images.shape[:2])
    return blurred


PAIRED: dict[str, Distance] = {"mse": mse, "psnr": psnr, "ssim": ssim}
NAMES = (*PAIRED, "lpips")
SMALLEST_SIDE = {"ssim": WINDOW, "lpips": SMALLEST}


def parse_names(text: str) -> list[str]:
    """'mse,ssim' -> their names.

    Raises:
        UserError: one that is unknown.
    """
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in NAMES:
            raise UserError(f"--metrics={text}: {name!r} is none of {', '.join(NAMES)}.{nearest(name, NAMES)}")
    return list(dict.fromkeys(names))


def check_size(name: str, side: int) -> None:
    """
    Raises:
        UserError: images too small for a metric.
    """
    smallest = SMALLEST_SIDE.get(name, 1)
    if side < smallest:
        raise UserError(f"--metrics={name} takes images of {smallest} pixels or more; these have {side}")


def distances(names: Sequence[str], lpips: Lpips | None) -> dict[str, Distance]:
    """The metrics of these names; `lpips` must be there if it is named."""
    there = PAIRED if lpips is None else PAIRED | {"lpips": lpips}
    return {name: there[name] for name in names}
