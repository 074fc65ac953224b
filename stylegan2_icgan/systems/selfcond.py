"""The networks of self-conditioned GANs: DCGAN, a condition at the generator's input, a logit for each class.

Liu et al., Diverse Image Generation via Self-Conditioned GANs, arXiv 2006.10728. With --cond=cluster, which the presets
give, the classes are clusters of the discriminator's features (stylegan2_icgan/clusters.py).
"""

from dataclasses import dataclass

import torch

from torch_utils.command_line import UserError
from training import loss
from training.config import WIDEST, WIDEST_CH, option
from training.networks import dcgan, masked
from training.step import Term
from training.system import DataShape, Derived, Phase, System, SystemKind, lazy_adam


@dataclass(frozen=True)
class SelfCondOptions:
    """Networks, loss and optimiser."""

    z_dim: int = option(128, "Width of the noise z.", unit="N", low=1, high=WIDEST)
    ch: int = option(64, "Channels of the narrowest layer.", unit="N", low=1, high=WIDEST_CH)
    embed_dim: int = option(256, "Width of the embedding of a class, and of an instance.", unit="N", low=1, high=WIDEST)
    g_lr: float = option(1e-4, "Learning rate of the generator.", unit="LR", low=0)
    d_lr: float = option(1e-4, "Learning rate of the discriminator.", unit="LR", low=0)
    gamma: float = option(0.0, "Weight of R1.", unit="X", low=0)


def make_generator(o: SelfCondOptions, shape: DataShape) -> torch.nn.Module:
    width = o.z_dim + o.embed_dim * masked.num_conditions(shape.c_dim, shape.h_dim)
    trunk = dcgan.Generator(width, shape.img_resolution, shape.img_channels, o.ch)
    return masked.Generator(trunk, shape.c_dim, shape.h_dim, o.embed_dim)


def make_discriminator(o: SelfCondOptions, shape: DataShape) -> torch.nn.Module:
    trunk = dcgan.Trunk(shape.img_resolution, shape.img_channels, o.ch)
    dcgan.initialise(trunk)
    return masked.Discriminator(trunk, trunk.channels * dcgan.FIRST**2, **vars(shape))


def build(o: SelfCondOptions, networks: dict[str, torch.nn.Module]) -> System:
    d_terms: list[Term] = [loss.DLogisticFake(loss.generated), loss.d_logistic_real]
    if o.gamma > 0:
        d_terms.append(loss.R1(o.gamma))
    phases = [
        Phase("D", trains="D", terms=d_terms),
        Phase("G", trains="G", terms=[loss.GNonSaturating(loss.generated)]),
    ]
    betas = (0.0, 0.99)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "G": lazy_adam(networks["G"], o.g_lr, betas),
        "D": lazy_adam(networks["D"], o.d_lr, betas),
    }
    return System(networks, phases, optimizers, average_buffers=True)


def derive(o: SelfCondOptions, resolution: int, batch: int, batch_gpu: int) -> Derived:
    return {}


def check(o: SelfCondOptions, resolution: int, batch_gpu: int) -> None:
    if resolution not in dcgan.RESOLUTIONS:
        there = ", ".join(map(str, dcgan.RESOLUTIONS))
        raise UserError(f"--data has {resolution} x {resolution} images; DCGAN has layers for {there}: convert them")
    if batch_gpu < 2:
        raise UserError("--batch-gpu=1: batch normalisation compares the images of a round; expected at least 2")


SELFCOND = SystemKind(
    options=SelfCondOptions,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=derive,
    check=check,
)
