"""U-Net GAN: a discriminator that also says of every pixel whether it is real. Schönfeld et al., arXiv 2002.12655.

BigGAN's generator, non-saturating losses on both heads of the discriminator, CutMix; conditioned like BigGAN.
"""

from dataclasses import dataclass
from functools import partial

import torch

from stylegan2_icgan.biggan_family import ResidualOptions, adams, check_rounds
from torch_utils.command_line import UserError
from training.config import WIDEST, option
from training.cutmix import CutMix
from training.networks import biggan, unet
from training.pixel_loss import DPixelsFake, GPixels, d_pixels_real
from training.randomness import uniform
from training.system import DataShape, Derived, Phase, System, SystemKind

_CUTMIX = 71  # a stream of randomness


@dataclass(frozen=True)
class UNetOptions(ResidualOptions):
    """Networks, loss and optimiser."""

    z_dim: int = option(128, "Width of the noise z.", unit="N", low=1, high=WIDEST)
    shared_dim_feat: int = option(512, "Width of the embedding of the instance.", unit="N", low=1, high=WIDEST)
    d_lr: float = option(2e-4, "Learning rate of the discriminator.", unit="LR", low=0)
    d_steps: int = option(1, "Discriminator steps per generator step, each on images of its own.", unit="N", low=1)
    cutmix: float = option(
        0.5, "Share of D's steps that are on mixed images alone, in the end; 0: none.", unit="SHARE", low=0, high=1
    )
    cutmix_warmup: int = option(
        100_000, "The share grows from 0 in so many steps, in a straight line.", unit="STEPS", low=0
    )
    consistency: float = option(1.0, "Weight of the consistency of mixed images.", unit="X", low=0)


def make_generator(o: UNetOptions, shape: DataShape) -> torch.nn.Module:
    how = {"ch": o.ch, "init": o.init, "bn_momentum": o.bn_momentum, "bn_across": o.bn_across, "sn_eps": o.sn_eps}
    if shape.c_dim == 0 and shape.h_dim == 0:
        return unet.Generator(o.z_dim, shape.img_resolution, shape.img_channels, **how)
    return biggan.Generator(
        **vars(shape), z_dim=o.z_dim, hier=False, shared=False, shared_dim_feat=o.shared_dim_feat, **how
    )


def make_discriminator(o: UNetOptions, shape: DataShape) -> torch.nn.Module:
    return unet.Discriminator(**vars(shape), ch=o.ch, init=o.init, sn_eps=o.sn_eps)


def build(o: UNetOptions, networks: dict[str, torch.nn.Module]) -> System:
    mixed = partial(is_mixed, share=o.cutmix, warmup=o.cutmix_warmup)
    phases = [
        Phase("D", trains="D", terms=[DPixelsFake(), d_pixels_real], when=lambda step: not mixed(step)),
        Phase("Dmix", trains="D", terms=[CutMix(o.consistency)], when=mixed),
        Phase("G", trains="G", terms=[GPixels()], interval=o.d_steps),
    ]
    return System(networks, phases, adams(o, networks), average_buffers=True)


def is_mixed(step: int, share: float, warmup: int) -> bool:
    """Whether D sees nothing but mixed images in a step: with probability share * min(1, step / warmup).

    A function of the step alone, so that all rounds and processes agree.
    """
    return bool(uniform(_CUTMIX, step)[0] < share * min((step + 1) / max(warmup, 1), 1))


def derive(o: UNetOptions, resolution: int, batch: int, batch_gpu: int) -> Derived:
    return {}


def check(o: UNetOptions, resolution: int, batch_gpu: int) -> None:
    if resolution not in unet.WIDTHS:
        there = ", ".join(map(str, unet.WIDTHS))
        raise UserError(
            f"--data has {resolution} x {resolution} images; U-Net GAN has layers for {there}: convert them"
        )
    check_rounds(batch_gpu)


UNET = SystemKind(
    options=UNetOptions,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=derive,
    check=check,
)
