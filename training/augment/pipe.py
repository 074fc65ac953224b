"""The augmentation pipe of StyleGAN2-ADA (Karras et al., arXiv 2006.06676, appendix B), written from the paper."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from training.augment.blit import Blit, draw_blit, turn
from training.augment.borders import move
from training.augment.color import color_map, draw_color, recolor
from training.augment.corruption import add_noise, cut_out, draw_cutout, draw_noise
from training.augment.filtering import amplify, draw_gains
from training.augment.geometry import draw_geometry, inverse_map, warp
from training.augment.wavelets import SYM6, octave_bands, unit_sum

GROUPS = ("blit", "geom", "color", "filter", "noise", "cutout")  # in the order of application
SPECS: dict[str, tuple[str, ...]] = {
    "blit": ("blit",),
    "geom": ("geom",),
    "color": ("color",),
    "filter": ("filter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": GROUPS[:2],
    "bgc": GROUPS[:3],  # the paper's choice for its own runs
    "bgcf": GROUPS[:4],
    "bgcfn": GROUPS[:5],
    "bgcfnc": GROUPS,
}
MIN_SIDE = 8  # pixels; a whole-pixel shift of an eighth of the side is then at least one


class AugmentPipe(torch.nn.Module):
    """Show the discriminator transformed images, each transformation with probability p, each image on its own.

    Differentiable twice in the images. Parameters are drawn from torch's global generator of p's device, and the host
    never waits for the device. What no transformation was drawn for comes back bit for bit; p = 0 is the identity.

    Args:
        spec: a key of `SPECS`.
        p: probability of each transformation, in [0, 1]; a buffer, so that it is saved, and moved by `AdaController`.
    """

    p: Tensor
    lowpass: Tensor
    bands: Tensor

    def __init__(self, spec: str = "bgc", p: float = 0.0) -> None:
        super().__init__()
        if spec not in SPECS:
            raise ValueError(f"spec: {spec!r} is not one of {', '.join(SPECS)}.")
        if not 0 <= p <= 1:
            raise ValueError(f"p: {p} is not a probability, a number from 0 to 1.")
        self.spec, self.groups = spec, SPECS[spec]
        self.register_buffer("p", torch.tensor(float(p)))
        self.register_buffer("lowpass", unit_sum(SYM6), persistent=False)
        self.register_buffer("bands", octave_bands(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Augment.

        Args:
            images: [N, 1 or 3, S, S] in [-1, 1], S >= 8; float16 and bfloat16 are computed in float32, rounded once.

        Returns:
            the images' shape and dtype; values may leave [-1, 1].

        Raises:
            ValueError: images of another shape or dtype.
        """
        check_images(images)
        with no_autocast(images.device):
            return self._transform(full_precision(images)).to(images.dtype)

    def _transform(self, x: Tensor) -> Tensor:
        count, side = len(x), x.shape[3]

        # Pixel blitting. Before a warp the whole-pixel shift becomes part of it, for one border instead of two.
        pixels = torch.zeros(count, 2, dtype=torch.int64, device=x.device)
        if "blit" in self.groups:
            blit: Blit = draw_blit(count, side, self.p)
            x, pixels = turn(x, blit), blit.shift
        if "geom" in self.groups:
            x = warp(x, inverse_map(draw_geometry(count, self.p), pixels, side), self.lowpass)
        elif "blit" in self.groups:
            x = move(x, pixels, "reflect")

        if "color" in self.groups:
            x = recolor(x, color_map(draw_color(count, self.p)))
        if "filter" in self.groups:
            x = amplify(x, draw_gains(count, self.p), self.bands)

        # Corruptions.
        if "noise" in self.groups:
            x = add_noise(x, draw_noise(count, self.p))
        if "cutout" in self.groups:
            x = cut_out(x, *draw_cutout(count, self.p))
        return x


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep convolutions in the precision asked for, on devices where autocast could change it."""
    if torch.amp.is_autocast_available(device.type):  # type: ignore[attr-defined]  # documented, not in __all__
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def full_precision(images: Tensor) -> Tensor:
    """float32, or float64 as it is; contiguous, so that noise does not depend on the strides."""
    return (images if images.dtype == torch.float64 else images.float()).contiguous()


def check_images(images: Tensor) -> None:
    """Refuse anything but square images, grey or in three colours.

    Raises:
        ValueError: not floating point, or not [N, 1 or 3, S, S] with S >= 8.
    """
    shape, plain = images.shape, images.is_floating_point()
    if not plain or len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3] or shape[2] < MIN_SIDE:
        expected = f"floating-point [N, 1 or 3, S, S] with S >= {MIN_SIDE}"
        raise ValueError(f"images: expected {expected}, got {images.dtype} {list(shape)}.")
