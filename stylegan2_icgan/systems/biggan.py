"""The BigGAN family: hinge loss, several discriminator steps a generator step, a learning rate for each network.

Brock et al., arXiv 1809.11096. Its members are rows of the table of presets: SAGAN (arXiv 1805.08318) is --no-shared
--no-hier --init=xavier, BigGAN-deep is --deep, and IC-GAN on BigGAN (arXiv 2109.05070) is --cond=instance.
"""

import sys
from dataclasses import dataclass

import torch

from torch_utils.command_line import UserError
from training import loss
from training.config import option
from training.networks.biggan import WIDTHS, Discriminator, Generator, attention_resolutions
from training.networks.spectral_norm import INITIALISATIONS
from training.step import Term
from training.system import DataShape, Derived, Phase, System, SystemKind, lazy_adam

FINITE = sys.float_info.max
LIMITS = {
    **dict.fromkeys(("ch", "shared_dim", "shared_dim_feat", "d_steps"), (1, FINITE)),
    **dict.fromkeys(("g_lr", "d_lr", "ortho_weight", "sn_eps", "adam_eps"), (0, FINITE)),
    "bn_momentum": (1e-6, 1),
}


@dataclass(frozen=True)
class BigGANOptions:
    """Networks, loss and optimiser."""

    z_dim: int = option(120, "Width of the noise z; rounded down to equal chunks.", unit="N")
    ch: int = option(64, "Channels of the narrowest layer.", unit="N")
    deep: bool = option(False, "Bottleneck blocks, two a stage: BigGAN-deep.")
    hier: bool = option(True, "Let z, or a chunk of it, condition every stage too.")
    shared: bool = option(True, "One embedding of the class for all layers, not a row a class in each.")
    shared_dim: int = option(128, "Width of the embedding of the class.", unit="N")
    shared_dim_feat: int = option(512, "Width of the embedding of the instance.", unit="N")
    attention: str | None = option(
        None, "Resolutions with self-attention; 0: none.  [default: 64; 32 for 64 px, 0 below]", unit="N,N"
    )
    init: str = option("ortho", "How weights are drawn at the start.", choices=INITIALISATIONS)
    bn_momentum: float = option(0.1, "Share of a batch in the running statistics.", unit="SHARE")
    bn_across: bool = option(True, "Normalise over the batches of all processes together.")
    sn_eps: float = option(1e-6, "Smallest singular value that is divided by.", unit="X")
    g_lr: float = option(5e-5, "Learning rate of the generator.", unit="LR")
    d_lr: float = option(2e-4, "Learning rate of the discriminator.", unit="LR")
    adam_eps: float = option(1e-6, "Adam's epsilon.", unit="X")
    d_steps: int = option(2, "Discriminator steps per generator step, each on images of its own.", unit="N")
    ortho_weight: float = option(0.0, "Weight of orthogonal regularisation; the paper's is 1e-4.", unit="X")


def make_generator(o: BigGANOptions, shape: DataShape) -> torch.nn.Module:
    return Generator(
        **vars(shape),
        z_dim=o.z_dim,
        ch=o.ch,
        deep=o.deep,
        hier=o.hier,
        shared=o.shared,
        shared_dim=o.shared_dim,
        shared_dim_feat=o.shared_dim_feat,
        attention=resolutions(o.attention),
        init=o.init,
        bn_momentum=o.bn_momentum,
        bn_across=o.bn_across,
        sn_eps=o.sn_eps,
    )


def make_discriminator(o: BigGANOptions, shape: DataShape) -> torch.nn.Module:
    attention = resolutions(o.attention)
    return Discriminator(**vars(shape), ch=o.ch, deep=o.deep, attention=attention, init=o.init, sn_eps=o.sn_eps)


def build(o: BigGANOptions, networks: dict[str, torch.nn.Module]) -> System:
    d_terms: list[Term] = [loss.DHingeFake(), loss.d_hinge_real]
    g_terms: list[Term] = [loss.GHinge()]
    if o.ortho_weight > 0:
        d_terms.append(loss.OrthogonalRegularization("D", o.ortho_weight))
        g_terms.append(loss.OrthogonalRegularization("G", o.ortho_weight))
    phases = [Phase("D", trains="D", terms=d_terms), Phase("G", trains="G", terms=g_terms, interval=o.d_steps)]
    betas = (0.0, 0.999)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "G": lazy_adam(networks["G"], o.g_lr, betas, o.adam_eps),
        "D": lazy_adam(networks["D"], o.d_lr, betas, o.adam_eps),
    }
    return System(networks, phases, optimizers, average_buffers=True)


def resolutions(words: str | None) -> tuple[int, ...]:
    """'32,64' -> (32, 64); '0' -> ().

    Raises:
        UserError: no such list.
    """
    try:
        numbers = tuple(int(word) for word in (words or "0").split(","))
    except ValueError:
        raise UserError(f"--attention={words}: expected resolutions such as 32,64, or 0 for none") from None
    return () if numbers == (0,) else numbers


def derive(o: BigGANOptions, resolution: int, batch: int, batch_gpu: int) -> Derived:
    at = 64 if resolution >= 128 else 32 if resolution == 64 else 0
    return {"attention": (str(at), "64; 32 for 64 px, 0 below")}


def check(o: BigGANOptions, resolution: int, batch_gpu: int) -> None:
    if resolution not in WIDTHS:
        there = ", ".join(map(str, WIDTHS))
        raise UserError(f"--data has {resolution} x {resolution} images; BigGAN has layers for {there}: convert them")
    g_there, d_there = attention_resolutions(resolution)
    for wanted in resolutions(o.attention):
        if wanted not in g_there or wanted not in d_there:
            there = ", ".join(str(r) for r in g_there if r in d_there) or "none"
            raise UserError(f"--attention={o.attention}: {wanted} is no resolution of both networks; there is {there}")
    if o.hier and not o.shared:
        raise UserError("--hier --no-shared: z can only join a shared embedding; expected --no-hier, or --shared")
    chunks = len(g_there) + 1 if o.hier and not o.deep else 1
    if o.z_dim < chunks:
        raise UserError(f"--z-dim={o.z_dim}: expected at least {chunks}, one for each of the chunks of --hier")
    if batch_gpu < 2:
        raise UserError("--batch-gpu=1: batch normalisation compares the images of a round; expected at least 2")
    for name, (lowest, highest) in LIMITS.items():
        if not lowest <= getattr(o, name) <= highest:
            expected = f"{lowest:g} or more" if highest == FINITE else f"{lowest:g} to {highest:g}"
            raise UserError(f"--{name.replace('_', '-')}={getattr(o, name)}: expected {expected}")


BIGGAN = SystemKind(
    options=BigGANOptions,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=derive,
    check=check,
)
