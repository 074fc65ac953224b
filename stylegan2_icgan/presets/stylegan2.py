"""Rows for StyleGAN2. Published values: StyleGAN2-ADA (arXiv 2006.06676, appendix C, hyper-parameters of all runs)."""

from typing import Any

from stylegan2_icgan.systems.stylegan2 import largest_group
from training.system import Derived

FP16 = {"num_fp16_res": 4, "conv_clamp": 256.0}  # as published: half the time and memory of the highest resolutions


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
        "k": 50,  # IC-GAN section 4, ImageNet
    }


def tiny(resolution: int) -> dict[str, Any]:
    """Minutes on two CPU cores, for images of up to 32 pixels; found on the digits, seed 0."""
    return {
        "batch": 16,  # small steps, many of them
        "kimg": 36.0,
        "tick": 2.0,
        "snap": 6,
        "z_dim": 64,
        "w_dim": 64,
        "map_layers": 2,
        "map_lr": 0.1,  # the condition takes hold sooner than with 0.01: agreement 0.90 against 0.88
        "channel_base": 512,
        "channel_max": 64,
        "d_architecture": "orig",  # a shallow discriminator needs no skips, and they cost a tenth
        "g_lr": 0.005,  # twice the usual rate learns the condition in two thirds of the images
        "d_lr": 0.005,
        "gamma": 0.1,
        "pl_weight": 0.0,  # costs a third of the time, shows in interpolations only
        "style_mixing": 0.0,
        "ema_kimg": 2.5,
        "threads": 1,  # layers this small gain a fifth from a second one, and lose far more when it must wait
        "ops": "ref",  # nothing to gain at this size: no minute of compiling before the first image
        "k": 10,
    }


def stylegan2(resolution: int) -> dict[str, Any]:
    """Configuration F of StyleGAN2 (arXiv 1912.04958, table 1), without augmentation."""
    return {
        "batch": 32,
        "mbstd_group": 4,
        "g_lr": 0.002,
        "d_lr": 0.002,
        "gamma": 10.0,  # for FFHQ at 1024 pixels; smaller images want less
        "ema_kimg": 10.0,
        "ema_rampup": 0.0,
        "k": 50,
        **FP16,
    }


def paper256(resolution: int) -> dict[str, Any]:
    """FFHQ and LSUN at 256 pixels."""
    return {
        "batch": 64,
        "mbstd_group": 8,
        "channel_base": 16384,  # half the channels were as good at 256 pixels
        "gamma": 1.0,
        "ema_kimg": 20.0,
        "ema_rampup": 0.0,
        "aug": "ada",
        "k": 50,
        **FP16,
    }


def paper512(resolution: int) -> dict[str, Any]:
    """AFHQ at 512 pixels."""
    return {
        "batch": 64,
        "mbstd_group": 8,
        "gamma": 0.5,
        "ema_kimg": 20.0,
        "ema_rampup": 0.0,
        "aug": "ada",
        "k": 50,
        **FP16,
    }


def paper1024(resolution: int) -> dict[str, Any]:
    """MetFaces at 1024 pixels."""
    return {
        "batch": 32,
        "mbstd_group": 4,
        "g_lr": 0.002,
        "d_lr": 0.002,
        "gamma": 2.0,
        "ema_kimg": 10.0,
        "ema_rampup": 0.0,
        "aug": "ada",
        "k": 50,
        **FP16,
    }


def cifar(resolution: int) -> dict[str, Any]:
    """CIFAR-10 at 32 pixels: tuned for it, a shallow discriminator and none of the regularisers of the generator."""
    return {
        "kimg": 100_000.0,
        "batch": 64,
        "channel_max": 512,
        "map_layers": 2,
        "d_architecture": "orig",
        "gamma": 0.01,
        "pl_weight": 0.0,
        "style_mixing": 0.0,
        "ema_kimg": 500.0,
        "aug": "ada",
        "k": 50,
        **FP16,
    }


def cifar_group(batch: int, batch_gpu: int) -> Derived:
    """Half of the published batch, each of two GPUs' whole round; on more GPUs rounds are smaller."""
    return {"mbstd_group": (largest_group(batch_gpu, 32), "32, or the most below that divides the round")}


def icgan_coco(resolution: int) -> dict[str, Any]:
    """IC-GAN on StyleGAN2 as published for COCO-Stuff (arXiv 2109.05070, appendix B): automatic rules for 2 GPUs."""
    batch = 2 * min(4096 // resolution, 32)
    small = resolution <= 128
    return {
        **auto(resolution),
        "kimg": 100_000.0,
        "batch": batch,
        "g_lr": 0.0025 if small else 0.003,
        "d_lr": 0.0025 if small else 0.003,
        "gamma": 0.05 if small else 0.5,
        "aug": "noaug",  # the discriminator sees neighbours: 5 real images an instance, not one
        "mirror": True,  # DA(d)
        "mirror_instances": True,  # DA(i)
        "k": 5,
        **FP16,
    }
