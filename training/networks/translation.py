"""Networks that translate images: residual generators and patch discriminators, as in CycleGAN (arXiv 1703.10593).

A convolution before an instance norm has no bias: the norm would take it out again, and Adam would move it at random.
"""

import math

import torch
from torch import Tensor

from training.networks.inputs import check_image

INIT_STD = 0.02  # of weights at the start (CycleGAN, appendix 7.1)
SLOPE = 0.2  # of LeakyReLU below 0
DIRECTIONS = ("AB", "BA")


class ResidualBlock(torch.nn.Module):
    """x + f(x), f two 3x3 convolutions with reflection padding, a ReLU between (Johnson et al., arXiv 1603.08155)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            *_conv(channels, channels, kernel_size=3),
            torch.nn.ReLU(),
            *_conv(channels, channels, kernel_size=3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResNetGenerator(torch.nn.Module):
    """An image of one domain -> an image of the other (CycleGAN, appendix 7.2).

    7x7 convolution, `downs` halvings, `blocks` residual blocks, `downs` doublings, 7x7 convolution, tanh; instance norm
    and ReLU after every convolution but the last.
    """

    def __init__(self, img_resolution: int, img_channels: int, ch: int, blocks: int, downs: int) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        layers: list[torch.nn.Module] = [*_conv(img_channels, ch, kernel_size=7), torch.nn.ReLU()]
        for width in (ch << down for down in range(downs)):
            conv = torch.nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
            layers += [conv, torch.nn.InstanceNorm2d(2 * width), torch.nn.ReLU()]
        layers += [ResidualBlock(ch << downs) for _ in range(blocks)]
        for width in (ch << down for down in reversed(range(downs))):
            conv = torch.nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1, bias=False)
            layers += [conv, torch.nn.InstanceNorm2d(width), torch.nn.ReLU()]
        layers += [torch.nn.ReflectionPad2d(3), torch.nn.Conv2d(ch, img_channels, 7), torch.nn.Tanh()]
        self.layers = torch.nn.Sequential(*layers)
        _initialise(self)

    def forward(self, img: Tensor) -> Tensor:
        """[N, img_channels, R, R] in [-1, 1] -> the same shape and range."""
        check_image(img, self.img_channels, self.img_resolution)
        result: Tensor = self.layers(img)
        return result


class Translator(torch.nn.Module):
    """Two generators, of either direction: `AB` and `BA`. There is no noise and no condition but the image."""

    z_dim = c_dim = h_dim = 0

    def __init__(self, img_resolution: int, img_channels: int, ch: int, blocks: int, downs: int) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.AB = ResNetGenerator(img_resolution, img_channels, ch, blocks, downs)
        self.BA = ResNetGenerator(img_resolution, img_channels, ch, blocks, downs)

    def forward(self, img: Tensor, direction: str) -> Tensor:
        """[N, img_channels, R, R] of the first letter's domain -> of the second's."""
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: {direction!r} is not one of {', '.join(DIRECTIONS)}.")
        translated: Tensor = getattr(self, direction)(img)
        return translated


class PatchDiscriminator(torch.nn.Module):
    """A logit for every patch of an image; the patches overlap (PatchGAN, arXiv 1611.07004, sections 3.2.2 and 6.1.2).

    4x4 convolutions and LeakyReLU: `layers` of stride 2, two of stride 1, the last one with a single channel; instance
    norm after all but the first and the last. A patch is 16, 34, 70 or 142 pixels wide for 1, 2, 3 or 4 `layers`.
    """

    def __init__(self, img_resolution: int, img_channels: int, ch: int, layers: int) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        parts = [torch.nn.Conv2d(img_channels, ch, 4, stride=2, padding=1), torch.nn.LeakyReLU(SLOPE)]
        width = ch
        for layer in range(1, layers + 1):
            wider = ch * min(2**layer, 8)
            conv = torch.nn.Conv2d(width, wider, 4, stride=2 if layer < layers else 1, padding=1, bias=False)
            parts += [conv, torch.nn.InstanceNorm2d(wider), torch.nn.LeakyReLU(SLOPE)]
            width = wider
        self.layers = torch.nn.Sequential(*parts, torch.nn.Conv2d(width, 1, 4, padding=1))
        _initialise(self)

    def forward(self, img: Tensor) -> Tensor:
        """[N, img_channels, R, R] -> logits [N, 1, P, P]."""
        check_image(img, self.img_channels, self.img_resolution)
        logits: Tensor = self.layers(img)
        return logits


def default_blocks(resolution: int) -> int:
    """9 from 256 pixels on, 6 below (CycleGAN, appendix 7.2); 3 for images smaller than those of the paper."""
    return 9 if resolution >= 256 else 6 if resolution >= 64 else 3


def default_downs(resolution: int) -> int:
    """2 halvings; 1 below 32 pixels."""
    return 2 if resolution >= 32 else 1


def default_patch_layers(resolution: int) -> int:
    """3 (patches of 70 pixels) from 64 pixels on; below, patches about as large as the image."""
    return min(max(int(math.log2(resolution)) - 3, 1), 3)


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> list[torch.nn.Module]:
    return [
        torch.nn.ReflectionPad2d(kernel_size // 2),
        torch.nn.Conv2d(in_channels, out_channels, kernel_size, bias=False),
        torch.nn.InstanceNorm2d(out_channels),
    ]


@torch.no_grad()
def _initialise(network: torch.nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.weight.normal_(std=INIT_STD)
            if module.bias is not None:
                module.bias.zero_()
