"""Presets: a row of values for `--cfg`, each value with its reason. Flags override them.

`auto` follows the rules of StyleGAN2-ADA (arXiv 2006.06676, appendix C), in float32.
"""

from collections.abc import Callable
from typing import Any


def _auto(resolution: int) -> dict[str, Any]:
    """A start for any resolution on one GPU, by the rules of StyleGAN2-ADA's automatic configuration."""
    batch = max(min(4096 // resolution, 32), 4)  # as large as fits
    return {
        "batch": batch,
        "channel_base": 32768 if resolution >= 512 else 16384,  # small images need fewer channels
        "g_lr": 0.002 if resolution >= 1024 else 0.0025,  # large ones are less stable
        "d_lr": 0.002 if resolution >= 1024 else 0.0025,
        "ema_kimg": batch * 10 / 32,  # half-life in proportion to the batch
        "map_layers": 2,  # trains more stably than 8 on small data
        "aug": "ada",  # as its automatic configuration
        "k": 50,  # IC-GAN section 4, ImageNet
    }


def _tiny(resolution: int) -> dict[str, Any]:
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
        "k": 10,
    }


STEPS_HALF = 6.931  # thousands of steps in which a moving average of decay 0.9999 forgets half


def _icgan_biggan(resolution: int) -> dict[str, Any]:
    """IC-GAN on BigGAN as published for ImageNet without labels (IC-GAN, arXiv 2109.05070, appendix B)."""
    small = resolution <= 64
    batch = 256 if small else 2048  # in all; --batch-gpu says how many at a time
    return {
        "batch": batch,
        "ch": 64 if small else 96,
        "g_lr": 1e-4 if small else 4e-5,
        "d_lr": 1e-4,
        "d_steps": 1,
        "ema_kimg": STEPS_HALF * batch,
        "ema_rampup": 0.0,
        "ema_start": 20.0 * batch,  # 20,000 steps
        "mirror": True,  # DA(d)
        "mirror_instances": resolution < 256,  # DA(i)
        "k": 50,
    }


def _icgan_biggan_coco(resolution: int) -> dict[str, Any]:
    """IC-GAN on BigGAN as published for COCO-Stuff (IC-GAN, arXiv 2109.05070, appendix B)."""
    return {
        "batch": 256,
        "ch": 48,
        "g_lr": 1e-4,
        "d_lr": 4e-4 if resolution < 256 else 1e-4,
        "d_steps": 1,
        "ema_kimg": STEPS_HALF * 256,
        "ema_rampup": 0.0,
        "ema_start": 20.0 * 256,
        "mirror": True,
        "mirror_instances": True,
        "aug": "diffaug",  # small data: a discriminator overfits sooner
        "diffaug": "translation",
        "k": 5,
    }


def _biggan(resolution: int) -> dict[str, Any]:
    """A start for any resolution on one GPU: half of the published width, a small batch."""
    return {
        "batch": 64,
        "g_lr": 1e-4,
        "d_lr": 4e-4,  # two learning rates (TTUR, arXiv 1706.08500)
        "d_steps": 1,
        "ema_kimg": 10.0,
        "aug": "diffaug",
        "k": 50,
    }


def _sagan(resolution: int) -> dict[str, Any]:
    """SAGAN (arXiv 1805.08318, section 4): no hierarchy, an embedding in every layer, one step each."""
    return {
        "batch": 256,
        "z_dim": 128,
        "shared": False,
        "hier": False,
        "init": "xavier",
        "bn_momentum": 0.001,
        "attention": "32" if resolution >= 64 else None,
        "g_lr": 1e-4,
        "d_lr": 4e-4,
        "d_steps": 1,
        "k": 50,
    }


def _biggan_deep(resolution: int) -> dict[str, Any]:
    """BigGAN-deep (arXiv 1809.11096, appendix B): bottleneck blocks, the whole of z everywhere; trained as BigGAN."""
    return {
        "batch": 2048,
        "deep": True,
        "z_dim": 128,
        "ch": 128,
        "ema_kimg": STEPS_HALF * 2048,
        "ema_rampup": 0.0,
        "ema_start": 20.0 * 2048,
        "k": 50,
    }


def _biggan_tiny(resolution: int) -> dict[str, Any]:
    """Minutes on two CPU cores, for images of up to 32 pixels; tried on the digits, seed 0."""
    return {
        "batch": 16,
        "kimg": 30.0,
        "tick": 2.0,
        "snap": 5,
        "z_dim": 24,
        "ch": 4,
        "shared_dim": 16,
        "shared_dim_feat": 32,
        "attention": "8",
        "g_lr": 1e-3,
        "d_lr": 2e-3,
        "d_steps": 1,
        "ema_kimg": 0.5,
        "threads": 1,
        "k": 10,
    }


PRESETS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {  # name -> system, values at a resolution
    "auto": ("stylegan2", _auto),
    "tiny": ("stylegan2", _tiny),
    "biggan": ("biggan", _biggan),
    "biggan-deep": ("biggan", _biggan_deep),
    "biggan-tiny": ("biggan", _biggan_tiny),
    "sagan": ("biggan", _sagan),
    "icgan-biggan": ("biggan", _icgan_biggan),
    "icgan-biggan-coco": ("biggan", _icgan_biggan_coco),
}
