"""DiffAugment (Zhao et al., arXiv 2006.10738): a few transformations, applied to every image, real and fake alike."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_utils.command_line import UserError
from training.augment.borders import move
from training.augment.corruption import cut_out
from training.augment.draws import column, uniform
from training.augment.pipe import check_images, full_precision

# Ranges of arXiv 2006.10738; images lie in [-1, 1].
BRIGHTNESS = 0.5  # added, from -0.5 to 0.5
CONTRAST = (0.5, 1.5)  # factor of the distance from the image's mean
SATURATION = (0.0, 2.0)  # factor of the distance from the pixel's mean over channels
TRANSLATION = 0.125  # of the side, either way; what moves in is 0


@dataclass(frozen=True)
class Tint:
    """Parameters of colour, one row an image, float32 [N]."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor


def draw_tint(count: int, device: torch.device) -> Tint:
    return Tint(
        brightness=uniform(-BRIGHTNESS, BRIGHTNESS, count, device=device),
        saturation=uniform(*SATURATION, count, device=device),
        contrast=uniform(*CONTRAST, count, device=device),
    )


def tint(images: Tensor, parameters: Tint) -> Tensor:
    """Brightness, saturation and contrast of [N, C, H, W], float32 or float64; a grey image has no saturation."""
    brightness, saturation, contrast = (
        column(values).to(images.dtype)
        for values in (parameters.brightness, parameters.saturation, parameters.contrast)
    )
    images = images + brightness
    if images.shape[1] > 1:
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * saturation
    mean = images.mean([1, 2, 3], keepdim=True)
    return mean + (images - mean) * contrast


def draw_translation(count: int, side: int, device: torch.device) -> Tensor:
    """Whole pixels (x, y), each uniform over -reach .. reach, an eighth of the side rounded: int64 [N, 2]."""
    reach = int(side * TRANSLATION + 0.5)
    return torch.randint(-reach, reach + 1, (count, 2), device=device)


def _color(images: Tensor) -> Tensor:
    return tint(images, draw_tint(len(images), images.device))


def _translation(images: Tensor) -> Tensor:
    return move(images, draw_translation(len(images), images.shape[3], images.device), "zeros")


def _cutout(images: Tensor) -> Tensor:
    every = torch.ones(len(images), dtype=torch.bool, device=images.device)
    return cut_out(images, torch.rand(len(images), 2, device=images.device), every)


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {"color": _color, "translation": _translation, "cutout": _cutout}


class DiffAugment:
    """Apply the named transformations in the order given; differentiable to any order.

    Args:
        policy: names of `POLICIES`, separated by commas. IC-GAN uses 'translation' on COCO-Stuff and ImageNet-LT.

    Raises:
        UserError: a name that there is not, none, or one twice.
    """

    def __init__(self, policy: str = "color,translation,cutout") -> None:
        self.names = [name.strip() for name in policy.split(",")]
        if not set(self.names) <= set(POLICIES) or len(set(self.names)) < len(self.names):
            known = ", ".join(POLICIES)
            raise UserError(f"DiffAugment policy {policy!r}: expected one or more of {known}, separated by commas.")

    def __call__(self, images: Tensor) -> Tensor:
        """[N, 1 or 3, S, S] in [-1, 1], S >= 8 -> the same shape and dtype; half precision is computed in float32."""
        check_images(images)
        x = full_precision(images)
        for name in self.names:
            x = POLICIES[name](x)
        return x.to(images.dtype)
