"""LPIPS: distance of two images as a network sees them. Zhang et al., arXiv:1801.03924, equation 1, VGG16, v0.1."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.resizing import with_colour
from torch_utils.command_line import UserError
from torch_utils.float32 import exact_float32
from torch_utils.published import Download, copy_of
from torch_utils.weights import given_weights, one_line

FLAG = "--lpips-weights"
VGG16 = Download(  # torchvision's; licence: BSD-3-Clause
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
HEADS = Download(  # of the authors, v0.1; licence: BSD-2-Clause
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "lpips-vgg-v0.1.pth",
)
# VGG16 by blocks: widths of the convolutions, 3x3 with ReLU; a 2x2 max pool stands between blocks. The output of each
# block's last ReLU is compared (relu1_2, 2_2, 3_3, 4_3, 5_3).
BLOCKS: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Of images in [-1, 1], by channel (the authors' code; ImageNet's mean and deviation on that scale).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
BATCH = 8
SMALLEST = 16  # pixels: four pools halve them


class Lpips(torch.nn.Module):
    """Distance between images; the weights are those of `tensors`, by torchvision's and the authors' names."""

    def __init__(self, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
        super().__init__()
        self.description = description
        self.blocks = torch.nn.ModuleList()
        width_in, number = 3, 0
        for widths in BLOCKS:
            layers: list[torch.nn.Module] = []
            for width in widths:
                conv = torch.nn.Conv2d(width_in, width, 3, padding=1)
                conv.load_state_dict({kind: tensors[f"features.{number}.{kind}"] for kind in ("weight", "bias")})
                layers += [conv, torch.nn.ReLU()]
                width_in, number = width, number + 2
            self.blocks.append(torch.nn.Sequential(*layers))
            number += 1  # the pool has a number of its own
        for level, widths in enumerate(BLOCKS):
            self.register_buffer(
                f"head{level}", tensors[f"lin{level}.model.1.weight"].view(1, widths[-1], 1, 1).float()
            )
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, given: Sequence[Path], device: torch.device) -> "Lpips":
        """With published weights, or with those in the files given.

        Args:
            given: one file that holds both, or two: the trunk (torchvision's VGG16) and the heads; none: published.

        Raises:
            UserError: files that are missing, damaged, or not these weights.
        """
        found = [given_weights(path, FLAG) for path in given]
        found = found or [copy_of(file, "LPIPS", FLAG, None) for file in (VGG16, HEADS)]
        tensors: dict[str, Tensor] = {}
        for weights in found:
            tensors |= weights.tensors()
        files = [{"file": weights.path.name, "sha256": weights.sha256} for weights in found]
        known = [weights.sha256 for weights in found] == [VGG16.sha256, HEADS.sha256]
        description = {"name": "lpips-vgg16-v0.1", "weights": files, "published": known, "precision": "float32"}
        try:
            return cls(tensors, description).to(device)
        except (KeyError, RuntimeError) as error:
            names = " ".join(str(weights.path) for weights in found)
            raise UserError(
                f"{FLAG} {names}: not LPIPS's weights ({one_line(error)}); expected torchvision's VGG16 "
                "(features.0.weight) and the heads (lin0.model.1.weight), in one file or two"
            ) from None

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """float32 [N], at least 0.

        Args:
            a, b: [N, 1 or 3, H, W], uint8 or float 0..255.

        Raises:
            UserError: less than `SMALLEST` pixels a side.
        """
        if min(a.shape[2:]) < SMALLEST:
            raise UserError(f"LPIPS takes images of {SMALLEST} pixels or more; these have {min(a.shape[2:])}")
        x = torch.cat([with_colour(images.to(self.get_buffer("shift").device).float()) for images in (a, b)])
        total = torch.zeros(len(a), device=x.device)
        for level, units in enumerate(self.units(x / 127.5 - 1)):
            total += self.apart(level, *units.chunk(2))
        return total

    def units(self, images: Tensor) -> Iterator[Tensor]:
        """What the network makes of images after each block, of unit length along the channels; differentiable.

        Args:
            images: float32 [N, 3, H, W] about [-1, 1].
        """
        x = (images - self.get_buffer("shift")) / self.get_buffer("scale")
        for level, block in enumerate(self.blocks):
            with exact_float32():
                x = block(F.max_pool2d(x, 2) if level else x)
            yield x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)

    def apart(self, level: int, a: Tensor, b: Tensor) -> Tensor:
        """The summand of equation 1 of one block, [N]."""
        return ((a - b).square() * self.get_buffer(f"head{level}")).sum(dim=1).mean(dim=(1, 2))
