"""LOGAN: latents are moved towards better scores before both networks learn from them. Wu et al., arXiv 1912.00953.

Hinge loss, on BigGAN's networks or DCGAN's; the prior of the noise is uniform.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stylegan2_icgan import biggan_family
from stylegan2_icgan.biggan_family import NetworkOptions, adams, check_rounds
from torch_utils.command_line import UserError
from training import loss
from training.config import WIDEST, option
from training.latent import LatentOptimisation, Optimised
from training.networks import dcgan
from training.networks.prior import UniformPrior
from training.system import DataShape, Phase, System, SystemKind


@dataclass(frozen=True)
class LOGANOptions(NetworkOptions):
    """Networks, loss, latent optimisation and optimiser."""

    z_dim: int = option(256, "Width of the noise z; rounded down to equal chunks.", unit="N", low=1, high=WIDEST)
    backbone: str = option("biggan", "Networks; dcgan takes no condition.", choices=("biggan", "dcgan"))
    slope: float = option(0.2, "Of LeakyReLUs in the networks of BigGAN; 0: ReLUs.", unit="X", low=0, high=1)
    latent_method: str = option(
        "natural", "Direction of the latent steps: the natural or the plain gradient.", choices=("natural", "plain")
    )
    latent_steps: int = option(1, "Latent steps before each step of a network.", unit="N", low=1)
    latent_rate: float = option(0.9, "Length of a latent step: alpha.", unit="X", low=0)
    latent_damping: float = option(5.0, "Damping of the natural gradient: beta.", unit="X", above=0)
    latent_share: float = option(0.5, "Share of the elements of z that are moved: c.", unit="SHARE", low=0, high=1)
    latent_cost: float = option(300.0, "Weight of the transport cost: w_r.", unit="X", low=0)


def make_generator(o: LOGANOptions, shape: DataShape) -> torch.nn.Module:
    if o.backbone == "biggan":
        return UniformPrior(biggan_family.make_generator(o, shape, o.slope))
    return UniformPrior(dcgan.Generator(o.z_dim, shape.img_resolution, shape.img_channels, o.ch))


def make_discriminator(o: LOGANOptions, shape: DataShape) -> torch.nn.Module:
    if o.backbone == "biggan":
        return biggan_family.make_discriminator(o, shape, o.slope)
    return dcgan.Discriminator(shape.img_resolution, shape.img_channels, o.ch)


def conditions(o: LOGANOptions) -> Sequence[str]:
    return ("none",) if o.backbone == "dcgan" else ("none", "class", "instance", "instance+class", "cluster")


def build(o: LOGANOptions, networks: dict[str, torch.nn.Module]) -> System:
    latent = LatentOptimisation(
        o.latent_method == "natural", o.latent_rate, o.latent_damping, o.latent_share, o.latent_steps, o.latent_cost
    )
    phases = [
        Phase("D", trains="D", terms=[Optimised(loss.DHingeFake(), latent), loss.d_hinge_real]),
        Phase("G", trains="G", terms=[Optimised(loss.GHinge(), latent)], interval=o.d_steps),
    ]
    return System(networks, phases, adams(o, networks), average_buffers=True)


def check(o: LOGANOptions, resolution: int, batch_gpu: int) -> None:
    if o.backbone == "biggan":
        biggan_family.check(o, resolution, batch_gpu)
        return
    if resolution not in dcgan.RESOLUTIONS:
        there = ", ".join(map(str, dcgan.RESOLUTIONS))
        raise UserError(f"--data has {resolution} x {resolution} images; DCGAN has layers for {there}: convert them")
    check_rounds(batch_gpu)


LOGAN = SystemKind(
    options=LOGANOptions,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=biggan_family.derive,
    check=check,
    conditions=conditions,
)
