"""WGAN: a critic whose loss estimates a distance, kept Lipschitz by clipping its weights or by a gradient penalty.

Arjovsky et al., arXiv 1701.07875; penalty: Gulrajani et al., arXiv 1704.00028. Unconditional.
"""

from dataclasses import dataclass
from functools import partial

import torch

from torch_utils.command_line import UserError
from training import wasserstein
from training.config import WIDEST, WIDEST_CH, option
from training.networks import dcgan, mlp
from training.step import Term
from training.system import DataShape, Derived, Phase, System, SystemKind, lazy_adam

FEW, RARELY = 25, 500  # generator steps that wait for `critic_steps`: the first FEW, and multiples of RARELY


@dataclass(frozen=True)
class WGANOptions:
    """Networks, loss and optimiser."""

    z_dim: int = option(100, "Width of the noise z.", unit="N", low=1, high=WIDEST)
    ch: int = option(64, "Channels of the narrowest layer.", unit="N", low=1, high=WIDEST_CH)
    g_net: str = option("dcgan", "Generator.", choices=("dcgan", "mlp"))
    d_net: str = option("dcgan", "Critic.", choices=("dcgan", "mlp"))
    mlp_width: int = option(512, "Units of the hidden layers of an mlp.", unit="N", low=1, high=WIDEST)
    penalty: str = option(
        "clip",
        "clip: every weight of the critic to +-clip, RMSprop; gp: a penalty on its gradient, Adam.",
        choices=("clip", "gp"),
    )
    clip: float = option(0.01, "Largest weight of the critic, for --penalty=clip.", unit="X", above=0)
    gp_weight: float = option(10.0, "Weight of the penalty, for --penalty=gp.", unit="X", low=0)
    g_lr: float = option(5e-5, "Learning rate of the generator.", unit="LR", low=0)
    d_lr: float = option(5e-5, "Learning rate of the critic.", unit="LR", low=0)
    d_steps: int = option(5, "Discriminator steps per generator step, each on images of its own.", unit="N", low=1)
    critic_steps: int | None = option(
        None,
        f"As d-steps, but before the first {FEW} generator steps and every {RARELY}th.  [default: 100; d-steps for gp]",
        unit="N",
        low=1,
    )


def make_generator(o: WGANOptions, shape: DataShape) -> torch.nn.Module:
    if o.g_net == "mlp":
        return mlp.Generator(o.z_dim, shape.img_resolution, shape.img_channels, o.mlp_width)
    return dcgan.Generator(o.z_dim, shape.img_resolution, shape.img_channels, o.ch)


def make_discriminator(o: WGANOptions, shape: DataShape) -> torch.nn.Module:
    if o.d_net == "mlp":
        return mlp.Discriminator(shape.img_resolution, shape.img_channels, o.mlp_width)
    return dcgan.Discriminator(shape.img_resolution, shape.img_channels, o.ch, batch_norm=o.penalty == "clip")


def build(o: WGANOptions, networks: dict[str, torch.nn.Module]) -> System:
    assert o.critic_steps is not None  # derived
    terms: list[Term] = [wasserstein.Critic()]
    optimizers: dict[str, torch.optim.Optimizer]
    if o.penalty == "gp":
        terms.append(wasserstein.GradientPenalty(o.gp_weight))
        betas = (0.0, 0.9)  # arXiv 1704.00028, algorithm 1
        optimizers = {name: lazy_adam(networks[name], lr, betas) for name, lr in (("G", o.g_lr), ("D", o.d_lr))}
    else:
        optimizers = {
            name: torch.optim.RMSprop(networks[name].parameters(), lr) for name, lr in (("G", o.g_lr), ("D", o.d_lr))
        }
    after = partial(wasserstein.clip_weights, limit=o.clip) if o.penalty == "clip" else None
    generator_due = partial(after_critic, usual=o.d_steps, many=o.critic_steps)
    phases = [
        Phase("D", trains="D", terms=terms, after=after),
        Phase("G", trains="G", terms=[wasserstein.GWasserstein()], when=generator_due),
    ]
    return System(networks, phases, optimizers, average_buffers=True)


def after_critic(step: int, usual: int, many: int) -> bool:
    """Whether step number `step`, each of which trains the critic once, trains the generator, too.

    Generator step g (from 0) follows `many` critic steps where g < FEW or g is a multiple of RARELY, else `usual` ones
    (as the published code does; the paper's algorithm 1 has `usual` only).
    """
    done = step + 1  # critic steps, this one included
    if done <= FEW * many:
        return done % many == 0
    done -= FEW * many
    if done <= (RARELY - FEW) * usual:
        return done % usual == 0
    done = (done - (RARELY - FEW) * usual) % (many + (RARELY - 1) * usual)  # from a multiple of RARELY to the next
    return done == 0 or (done >= many and (done - many) % usual == 0)


def derive(o: WGANOptions, resolution: int, batch: int, batch_gpu: int) -> Derived:
    if o.penalty == "gp":
        return {"critic_steps": (o.d_steps, "d-steps, as arXiv 1704.00028")}
    return {"critic_steps": (100, "100, as the published code")}


def check(o: WGANOptions, resolution: int, batch_gpu: int) -> None:
    if "dcgan" in (o.g_net, o.d_net) and resolution not in dcgan.RESOLUTIONS:
        there = ", ".join(map(str, dcgan.RESOLUTIONS))
        raise UserError(
            f"--data has {resolution} x {resolution} images; DCGAN has layers for {there}: convert them, or use "
            "--g-net=mlp --d-net=mlp"
        )
    if batch_gpu < 2 and (o.g_net == "dcgan" or (o.d_net == "dcgan" and o.penalty != "gp")):
        raise UserError("--batch-gpu=1: batch normalisation compares the images of a round; expected at least 2")


WGAN = SystemKind(
    options=WGANOptions,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=derive,
    check=check,
    conditions=lambda o: ("none",),
    signed=False,
)
