"""StyleGAN2 with R1 and path length regularisation; conditioned on nothing, a class, an instance or both.

Karras et al., arXiv 1912.04958 and 2006.06676; instances: Casanova et al., arXiv 2109.05070, appendix A.
"""

from dataclasses import dataclass

import torch

from stylegan2_icgan.networks import Discriminator, Generator
from torch_utils.command_line import UserError
from training import loss
from training.config import MOST_LAYERS, WIDEST, option
from training.mixed_precision import DTYPES
from training.system import DataShape, Derived, Phase, System, SystemKind, lazy_adam


@dataclass(frozen=True)
class StyleGAN2Options:
    """Networks, loss and optimiser."""

    z_dim: int = option(512, "Width of the noise z.", unit="N", low=1, high=WIDEST)
    w_dim: int = option(512, "Width of the styles w.", unit="N", low=1, high=WIDEST)
    map_layers: int = option(8, "Layers of the mapping networks.", unit="N", low=1, high=MOST_LAYERS)
    d_map_layers: int | None = option(
        None,
        "Layers of the discriminator's mapping network.  [default: as many as the generator's]",
        unit="N",
        low=1,
        high=MOST_LAYERS,
    )
    map_lr: float = option(
        0.01, "Learning rate of the mapping networks, as a share of the others'.", unit="SHARE", above=0
    )
    channel_base: int = option(32768, "Channels times resolution, at high resolutions.", unit="N", low=1)
    channel_max: int = option(512, "Most channels of a layer.", unit="N", low=1, high=WIDEST)
    g_architecture: str = option("skip", "Generator.", choices=("orig", "skip", "resnet"))
    d_architecture: str = option("resnet", "Discriminator.", choices=("orig", "skip", "resnet"))
    mbstd_group: int | None = option(
        None,
        "Group of the minibatch standard deviation.  [default: 4, or less where that does not divide the round]",
        unit="N",
        low=1,
    )
    num_fp16_res: int = option(
        0, "Highest resolutions in --low-dtype.", unit="N", low=0, in_precision={"fp32": 0, "fp16": 4, "bf16": 10}
    )
    low_dtype: str = option(
        "fp16",
        "What --num-fp16-res computes in; fp16 on CUDA alone.",
        choices=("fp16", "bf16"),
        in_precision={"fp16": "fp16", "bf16": "bf16"},
    )
    conv_clamp: float | None = option(
        None, "Clip activations at +-this.  [default: 256 with float16]", unit="X", above=0
    )
    g_lr: float = option(0.0025, "Learning rate of the generator.", unit="LR", low=0)
    d_lr: float = option(0.0025, "Learning rate of the discriminator.", unit="LR", low=0)
    gamma: float | None = option(None, "Weight of R1.  [default: 0.0002 * resolution^2 / batch]", unit="X", low=0)
    r1_interval: int = option(16, "R1 every this many steps.", unit="N", low=1)
    pl_weight: float = option(2.0, "Weight of the path length penalty; 0: none.", unit="X", low=0)
    pl_interval: int = option(4, "Path length penalty every this many steps.", unit="N", low=1)
    style_mixing: float = option(0.9, "Share of batches with mixed styles.", unit="SHARE", low=0, high=1)


def make_generator(o: StyleGAN2Options, shape: DataShape) -> torch.nn.Module:
    return Generator(
        z_dim=o.z_dim,
        c_dim=shape.c_dim,
        h_dim=shape.h_dim,
        w_dim=o.w_dim,
        img_resolution=shape.img_resolution,
        img_channels=shape.img_channels,
        mapping_kwargs={"num_layers": o.map_layers, "lr_multiplier": o.map_lr},
        synthesis_kwargs={
            "architecture": o.g_architecture,
            "channel_base": o.channel_base,
            "channel_max": o.channel_max,
            "num_fp16_res": o.num_fp16_res,
            "low_dtype": DTYPES[o.low_dtype],
            "conv_clamp": o.conv_clamp,
        },
    )


def make_discriminator(o: StyleGAN2Options, shape: DataShape) -> torch.nn.Module:
    return Discriminator(
        c_dim=shape.c_dim,
        h_dim=shape.h_dim,
        img_resolution=shape.img_resolution,
        img_channels=shape.img_channels,
        architecture=o.d_architecture,
        channel_base=o.channel_base,
        channel_max=o.channel_max,
        num_fp16_res=o.num_fp16_res,
        low_dtype=DTYPES[o.low_dtype],
        conv_clamp=o.conv_clamp,
        mapping_kwargs={"num_layers": o.d_map_layers or o.map_layers, "lr_multiplier": o.map_lr},
        epilogue_kwargs={"mbstd_group_size": o.mbstd_group},
    )


def build(o: StyleGAN2Options, networks: dict[str, torch.nn.Module]) -> System:
    assert o.gamma is not None  # derived
    main, quiet = loss.StyleMixing(o.style_mixing, update_w_avg=True), loss.StyleMixing(o.style_mixing)
    path_length = loss.PathLength(quiet, o.pl_weight)
    with_pl = o.pl_weight > 0

    phases = [Phase("Gmain", trains="G", terms=[loss.GNonSaturating(main)])]
    if with_pl:
        lazily = {"interval": o.pl_interval, "gain": o.pl_interval}
        phases += [Phase("Greg", trains="G", terms=[path_length], after=path_length.settle, **lazily)]
    phases += [Phase("Dmain", trains="D", terms=[loss.DLogisticFake(quiet), loss.d_logistic_real])]
    if o.gamma > 0:
        phases += [Phase("Dreg", trains="D", terms=[loss.R1(o.gamma)], interval=o.r1_interval, gain=o.r1_interval)]

    betas = (0.0, 0.99)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "G": lazy_adam(networks["G"], o.g_lr, betas, reg_interval=o.pl_interval if with_pl else None),
        "D": lazy_adam(networks["D"], o.d_lr, betas, reg_interval=o.r1_interval if o.gamma > 0 else None),
    }
    return System(networks, phases, optimizers, state={"path_length": path_length} if with_pl else {})


def derive(o: StyleGAN2Options, resolution: int, batch: int, batch_gpu: int) -> Derived:
    return {
        "gamma": (0.0002 * resolution**2 / batch, "0.0002 * resolution^2 / batch"),
        "mbstd_group": (largest_group(batch_gpu, 4), "4, or the most below that divides the round"),
        "conv_clamp": (256.0 if o.num_fp16_res and o.low_dtype == "fp16" else None, "float16 overflows above 65504"),
    }


def largest_group(batch_gpu: int, most: int) -> int:
    """The largest groups of at most `most` images that a round can be cut into."""
    return next(size for size in range(min(most, batch_gpu), 0, -1) if batch_gpu % size == 0)


def check(o: StyleGAN2Options, resolution: int, batch_gpu: int) -> None:
    assert o.mbstd_group is not None  # derived
    if batch_gpu % o.mbstd_group:
        raise UserError(
            f"--mbstd-group={o.mbstd_group} does not divide the {batch_gpu} images of a round (--batch-gpu, or a "
            f"process's share of --batch); expected a divisor, such as {largest_group(batch_gpu, o.mbstd_group)}, or "
            "other rounds"
        )
    if o.channel_base < resolution:
        raise UserError(
            f"--channel-base={o.channel_base} leaves no channels at {resolution} x {resolution} pixels; expected at "
            f"least {resolution}"
        )


STYLEGAN2 = SystemKind(
    options=StyleGAN2Options,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=derive,
    check=check,
    autocasts=False,  # its networks have layers of their own in 16 bits
    records=True,
)
