"""Rows for StyleGAN2: published ones, and two of our own."""

from typing import Any

from stylegan2_icgan.systems.stylegan2 import largest_group
from training.system import Derived

FP16 = {"num_fp16_res": 4, "conv_clamp": 256.0}  # as published: half the time and memory of the highest resolutions
INSTANCES = {"k": 50}  # IC-GAN section 4, ImageNet; of no matter without instances


def average(batch: int, batch_gpu: int) -> Derived:
    """A half-life in proportion to the batch, by the same rules as `auto`."""
    return {"ema_kimg": (batch * 10 / 32, "10 * batch / 32")}


def auto(resolution: int) -> dict[str, Any]:
    """A start for any resolution on one GPU, by the rules of StyleGAN2-ADA's automatic configuration, in float32."""
    batch = max(min(4096 // resolution, 32), 4)  # as large as fits
    return {
        "batch": batch,
        "channel_base": 32768 if resolution >= 512 else 16384,  # small images need fewer channels
        "g_lr": 0.002 if resolution >= 1024 else 0.0025,  # large ones are less stable
        "d_lr": 0.002 if resolution >= 1024 else 0.0025,
        "map_layers": 2,  # trains more stably than 8 on small data
        "aug": "ada",  # as its automatic configuration
        **INSTANCES,
    }


def tiny(resolution: int) -> dict[str, Any]:
    """Minutes on two CPU cores, for images of up to 32 pixels; found on the digits (16 pixels), seed 0."""
    return {
        "batch": 16,  # small steps, many of them
        "kimg": 36.0,  # 20 passes over the digits
        "tick": 2.0,  # 125 steps
        "snap": 6,  # three snapshots in all, beside the first
        "z_dim": 64,  # as wide as the widest layer
        "w_dim": 64,
        "map_layers": 2,  # as `auto`
        "map_lr": 0.1,  # the condition takes hold sooner than with 0.01: agreement 0.90 against 0.88
        "channel_base": 512,  # 32 channels at 16 pixels
        "channel_max": 64,  # below
        "d_architecture": "orig",  # a shallow discriminator needs no skips, and they cost a tenth
        "g_lr": 0.005,  # twice the usual rate learns the condition in two thirds of the images
        "d_lr": 0.005,
        "gamma": 0.1,  # by trial; the rule of `auto` gives 0.003
        "pl_weight": 0.0,  # costs a third of the time, shows in interpolations only
        "style_mixing": 0.0,  # as `cifar`
        "ema_kimg": 2.5,  # half of what `auto` has for this batch: the run is short
        "threads": 1,  # layers this small gain a fifth from a second one, and lose far more when it must wait
        "ops": "ref",  # nothing to gain at this size: no minute of compiling before the first image
        "k": 10,  # of the 180 images of a digit
    }


def published(batch: int, group: int | None, rate: float, gamma: float, ema_kimg: float) -> dict[str, Any]:
    """A row of the table of StyleGAN2-ADA's runs (arXiv 2006.06676, appendix C); what it leaves out are defaults.

    Args:
        batch: of all GPUs.
        group: of the minibatch standard deviation: all that a GPU has of the batch; None: `cifar_group` has it.
        rate: of both networks: StyleGAN2's with its batch of 32, more with 64.
        gamma: the data set's.
        ema_kimg: StyleGAN2's 10 with its batch of 32, in proportion with 64; CIFAR's own.
    """
    return {
        "batch": batch,
        "mbstd_group": group,
        "g_lr": rate,
        "d_lr": rate,
        "gamma": gamma,
        "ema_kimg": ema_kimg,
        "ema_rampup": 0.0,  # a constant half-life
        "aug": "ada",
        **INSTANCES,
        **FP16,
    }


def stylegan2(resolution: int) -> dict[str, Any]:
    """Configuration F of StyleGAN2 (arXiv 1912.04958, table 1), for FFHQ at 1024 pixels; less gamma for smaller."""
    return {**published(batch=32, group=4, rate=0.002, gamma=10.0, ema_kimg=10.0), "aug": "noaug"}  # before ADA


def paper256(resolution: int) -> dict[str, Any]:
    """FFHQ and LSUN at 256 pixels."""
    row = published(batch=64, group=8, rate=0.0025, gamma=1.0, ema_kimg=20.0)
    return {**row, "channel_base": 16384}  # half the channels were as good at 256 pixels


def paper512(resolution: int) -> dict[str, Any]:
    """AFHQ at 512 pixels."""
    return published(batch=64, group=8, rate=0.0025, gamma=0.5, ema_kimg=20.0)


def paper1024(resolution: int) -> dict[str, Any]:
    """MetFaces at 1024 pixels."""
    return published(batch=32, group=4, rate=0.002, gamma=2.0, ema_kimg=10.0)


def cifar(resolution: int) -> dict[str, Any]:
    """CIFAR-10 at 32 pixels, on two GPUs: the row that was tuned for it, and what its text says beside the table."""
    return {
        **published(batch=64, group=None, rate=0.0025, gamma=0.01, ema_kimg=500.0),
        "ema_rampup": 0.05,  # half a million images would keep the start for too long
        "kimg": 100_000.0,  # 2,000 epochs
        "map_layers": 2,  # of the row
        "d_architecture": "orig",  # shallow, without skips
        "pl_weight": 0.0,  # none of the regularisers of the generator
        "style_mixing": 0.0,
    }


def cifar_group(batch: int, batch_gpu: int) -> Derived:
    """Half of the published batch, each of two GPUs' whole round; on more GPUs rounds are smaller."""
    return {"mbstd_group": (largest_group(batch_gpu, 32), "32, or the most below that divides the round")}


def icgan_coco(resolution: int) -> dict[str, Any]:
    """IC-GAN on StyleGAN2 as published for COCO-Stuff (arXiv 2109.05070, appendix B): `auto`'s rules for 2 GPUs."""
    batch = 2 * min(4096 // resolution, 32)
    small = resolution <= 128
    return {
        **auto(resolution),
        "kimg": 100_000.0,  # at most
        "batch": batch,
        "g_lr": 0.0025 if small else 0.003,  # of the paper, as gamma
        "d_lr": 0.0025 if small else 0.003,
        "gamma": 0.05 if small else 0.5,
        "aug": "noaug",  # the discriminator sees neighbours: 5 real images an instance, not one
        "mirror": True,  # DA(d)
        "mirror_instances": True,  # DA(i)
        "k": 5,  # of 76,000 images
        **FP16,
    }
