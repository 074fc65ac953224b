"""Networks of four linear layers, with which WGAN shows that it trains without convolutions (arXiv 1701.07875, 4.3)."""

import itertools

import torch
from torch import Tensor

from training.networks import unconditional


def layers(*widths: int) -> torch.nn.Sequential:
    """Linear layers between consecutive widths, ReLU between them."""
    parts: list[torch.nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        parts += [torch.nn.Linear(width_in, width_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1])


class Generator(unconditional.Generator):
    """Nothing bounds the pixels, as published; what leaves [-1, 1] is clipped when it is shown."""

    def __init__(
        self,
        z_dim: int,
        img_resolution: int,
        img_channels: int,
        width: int = 512,  # of the three hidden layers
    ) -> None:
        super().__init__(z_dim, img_resolution, img_channels)
        self.layers = layers(z_dim, width, width, width, img_channels * img_resolution**2)

    def images(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z).unflatten(1, (self.img_channels, self.img_resolution, self.img_resolution))
        return images


class Discriminator(unconditional.Discriminator):
    """Of all pixels at once."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        width: int = 512,  # of the three hidden layers
    ) -> None:
        super().__init__(img_resolution, img_channels)
        self.layers = layers(img_channels * img_resolution**2, width, width, width, 1)

    def logits(self, img: Tensor) -> Tensor:
        logits: Tensor = self.layers(img.flatten(1))  # [N, 1]
        return logits
