"""What systems on BigGAN's networks share: options, networks, optimisers, and what can't work; not their losses."""

from dataclasses import dataclass

import torch

from torch_utils.command_line import UserError
from training.config import WIDEST, WIDEST_CH, option
from training.networks.biggan import WIDTHS, Discriminator, Generator, attention_resolutions
from training.networks.spectral_norm import INITIALISATIONS
from training.system import DataShape, Derived, lazy_adam


@dataclass(frozen=True)
class ResidualOptions:
    """Of all networks of spectrally normalised residual blocks, and of their optimisers."""

    z_dim: int = option(120, "Width of the noise z; rounded down to equal chunks.", unit="N", low=1, high=WIDEST)
    ch: int = option(64, "Channels of the narrowest layer.", unit="N", low=1, high=WIDEST_CH)
    init: str = option("ortho", "How weights are drawn at the start.", choices=INITIALISATIONS)
    bn_momentum: float = option(0.1, "Share of a batch in the running statistics.", unit="SHARE", low=1e-6, high=1)
    bn_across: bool = option(True, "Normalise over the batches of all processes together.")
    sn_eps: float = option(1e-6, "Smallest singular value that is divided by.", unit="X", low=0)
    g_lr: float = option(5e-5, "Learning rate of the generator.", unit="LR", low=0)
    d_lr: float = option(2e-4, "Learning rate of the discriminator.", unit="LR", low=0)
    adam_eps: float = option(1e-6, "Adam's epsilon.", unit="X", low=0)
    d_steps: int = option(2, "Discriminator steps per generator step, each on images of its own.", unit="N", low=1)


@dataclass(frozen=True)
class NetworkOptions(ResidualOptions):
    """Of BigGAN's generator and discriminator, SAGAN's and BigGAN-deep's among them."""

    deep: bool = option(False, "Bottleneck blocks, two a stage: BigGAN-deep.")
    hier: bool = option(True, "Let z, or a chunk of it, condition every stage too.")
    shared: bool = option(True, "One embedding of the class for all layers, not a row a class in each.")
    shared_dim: int = option(128, "Width of the embedding of the class.", unit="N", low=1, high=WIDEST)
    shared_dim_feat: int = option(512, "Width of the embedding of the instance.", unit="N", low=1, high=WIDEST)
    attention: str | None = option(
        None, "Resolutions with self-attention; 0: none.  [default: 64; 32 for 64 px, 0 below]", unit="N,N"
    )


def make_generator(o: NetworkOptions, shape: DataShape, slope: float = 0.0) -> Generator:
    """
    Args:
        slope: of LeakyReLUs; 0: ReLUs.
    """
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
        slope=slope,
        init=o.init,
        bn_momentum=o.bn_momentum,
        bn_across=o.bn_across,
        sn_eps=o.sn_eps,
    )


def make_discriminator(o: NetworkOptions, shape: DataShape, slope: float = 0.0) -> Discriminator:
    """As `make_generator`."""
    attention = resolutions(o.attention)
    return Discriminator(
        **vars(shape), ch=o.ch, deep=o.deep, attention=attention, slope=slope, init=o.init, sn_eps=o.sn_eps
    )


def adams(o: ResidualOptions, networks: dict[str, torch.nn.Module]) -> dict[str, torch.optim.Optimizer]:
    """Adam with the betas of the whole family, and a learning rate for each network."""
    betas = (0.0, 0.999)
    return {
        "G": lazy_adam(networks["G"], o.g_lr, betas, o.adam_eps),
        "D": lazy_adam(networks["D"], o.d_lr, betas, o.adam_eps),
    }


def resolutions(words: str | None) -> tuple[int, ...]:
    """'32,64' -> (32, 64); '0' -> ().

    Raises:
        UserError: no such list.
    """
    try:
        numbers = tuple(int(word) for word in ("0" if words is None else words).split(","))
    except ValueError:
        raise UserError(f"--attention={words}: expected resolutions such as 32,64, or 0 for none") from None
    return () if numbers == (0,) else numbers


def derive(o: NetworkOptions, resolution: int, batch: int, batch_gpu: int) -> Derived:
    at = 64 if resolution >= 128 else 32 if resolution == 64 else 0
    return {"attention": (str(at), "64; 32 for 64 px, 0 below")}


def check(o: NetworkOptions, resolution: int, batch_gpu: int) -> None:
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
    check_rounds(batch_gpu)


def check_rounds(batch_gpu: int) -> None:
    """Refuse rounds of a single image."""
    if batch_gpu < 2:
        raise UserError("--batch-gpu=1: batch normalisation compares the images of a round; expected at least 2")
