"""CSGAN: image translation between two domains, learnt from pairs. Kancharagunta and Dubey, arXiv 1901.03554.

CycleGAN's networks and losses (arXiv 1703.10593), and a loss that compares the synthesised with the cycled image of the
same pair. Two generators are "G", two discriminators "D", an optimiser for each two; the generators are trained first.
"""

from dataclasses import dataclass

import torch

from torch_utils.command_line import UserError
from training.config import MOST_LAYERS, WIDEST_CH, option
from training.fake_pool import FakePool
from training.networks import translation
from training.system import DataShape, Derived, Phase, Stateful, System, SystemKind, lazy_adam
from training.translation import PairPreview
from training.translation_loss import DTranslationFake, DTranslationReal, GTranslation

DOMAINS = ("A", "B")
LAST_LR = 0.01  # share of the learning rate that is left at the end; 1 / 101 in CycleGAN's last epoch
SMALLEST_PATCHES = 4  # pixels that a discriminator's maps have at least


@dataclass(frozen=True)
class CSGANOptions:
    """Networks, losses and optimisers."""

    ch: int = option(64, "Channels of the narrowest layer.", unit="N", low=1, high=WIDEST_CH)
    blocks: int | None = option(
        None,
        "Residual blocks of a generator.  [default: 9 from 256 px on, 6; 3 below 64]",
        unit="N",
        low=0,
        high=MOST_LAYERS,
    )
    patch_layers: int | None = option(
        None, "D's layers of stride 2; 3: patches of 70 px.  [default: 3; fewer below 64 px]", unit="N", low=1, high=5
    )
    cycle_weight: float = option(10.0, "Weight of cycle consistency.", unit="X", low=0)
    cs_weight: float = option(30.0, "Weight of the cyclic-synthesised loss; 0: CycleGAN.", unit="X", low=0)
    identity_weight: float = option(0.0, "Weight of the identity loss; CycleGAN's is 5.", unit="X", low=0)
    pool_size: int = option(50, "Earlier fakes kept for D, of each domain; 0: none.", unit="N", low=0)
    g_lr: float = option(2e-4, "Learning rate of the generator.", unit="LR", low=0)
    d_lr: float = option(2e-4, "Learning rate of the discriminator.", unit="LR", low=0)
    adam_beta1: float = option(0.5, "Adam's first beta.", unit="X", low=0, high=0.999)
    lr_hold: float | None = option(
        None, "From then on the learning rates fall, in a straight line.  [default: never]", unit="KIMG", above=0
    )
    lr_fall: float | None = option(
        None, "In so much time they fall to a hundredth.  [default: as long as --lr-hold]", unit="KIMG", above=0
    )


def make_generator(o: CSGANOptions, shape: DataShape) -> torch.nn.Module:
    assert o.blocks is not None  # derived
    resolution = shape.img_resolution
    downs = translation.default_downs(resolution)
    return translation.Translator(resolution, shape.img_channels, o.ch, o.blocks, downs)


def make_discriminator(o: CSGANOptions, shape: DataShape) -> torch.nn.Module:
    assert o.patch_layers is not None  # derived
    size = shape.img_resolution, shape.img_channels
    return torch.nn.ModuleDict({d: translation.PatchDiscriminator(*size, o.ch, o.patch_layers) for d in DOMAINS})


def build(o: CSGANOptions, networks: dict[str, torch.nn.Module]) -> System:
    pools = {domain: FakePool(o.pool_size, stream) for stream, domain in enumerate(DOMAINS)}

    def settle(network: torch.nn.Module) -> None:
        for pool in pools.values():
            pool.settle()

    def lr_factor(cur_nimg: int) -> float:
        if o.lr_hold is None or o.lr_fall is None:
            return 1.0
        return min(max(1 - (cur_nimg / 1000 - o.lr_hold) / o.lr_fall, LAST_LR), 1)

    g_terms = [GTranslation(o.cycle_weight, o.cs_weight, o.identity_weight)]
    d_terms = [term for d in DOMAINS for term in (DTranslationReal(d), DTranslationFake(d, pools[d]))]
    phases = [
        Phase("G", trains="G", terms=g_terms),
        Phase("D", trains="D", terms=d_terms, after=settle),
    ]
    betas = (o.adam_beta1, 0.999)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "G": lazy_adam(networks["G"], o.g_lr, betas),
        "D": lazy_adam(networks["D"], o.d_lr, betas),
    }
    state: dict[str, Stateful] = {f"fakes_{domain}": pool for domain, pool in pools.items()}
    return System(networks, phases, optimizers, state, preview=PairPreview, lr_factor=lr_factor)


def derive(o: CSGANOptions, resolution: int, batch: int, batch_gpu: int) -> Derived:
    return {
        "blocks": (translation.default_blocks(resolution), "9 from 256 px on, 6; 3 below 64"),
        "patch_layers": (translation.default_patch_layers(resolution), "3; fewer below 64 px"),
        "lr_fall": (o.lr_hold, "as long as --lr-hold"),
    }


def check(o: CSGANOptions, resolution: int, batch_gpu: int) -> None:
    assert o.patch_layers is not None  # derived
    if resolution >> o.patch_layers < SMALLEST_PATCHES:
        largest = (resolution // SMALLEST_PATCHES).bit_length() - 1
        raise UserError(
            f"--patch-layers={o.patch_layers} leaves nothing of {resolution} x {resolution} images; expected at most "
            f"{largest}"
        )


CSGAN = SystemKind(
    options=CSGANOptions,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=derive,
    check=check,
    conditions=lambda o: ("none",),
)
