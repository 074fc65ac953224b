"""Rows for the BigGAN family: SAGAN, BigGAN, BigGAN-deep and IC-GAN on BigGAN, as published."""

from typing import Any

STEPS_HALF = 6.931  # thousands of steps in which a moving average of decay 0.9999 forgets half


def average(batch: int, start: float = 20.0) -> dict[str, Any]:
    """A moving average of decay 0.9999, from `start` thousand steps on (BigGAN, arXiv 1809.11096, appendix C).

    Args:
        batch: images of all of the discriminator's steps that one step of the generator has.
    """
    return {"ema_kimg": STEPS_HALF * batch, "ema_rampup": 0.0, "ema_start": start * batch}


def biggan(resolution: int) -> dict[str, Any]:
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


def biggan_tiny(resolution: int) -> dict[str, Any]:
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
        "attention": "8" if resolution > 8 else "0",
        "g_lr": 1e-3,
        "d_lr": 2e-3,
        "d_steps": 1,
        "ema_kimg": 0.5,
        "threads": 1,
        "ops": "ref",
        "k": 10,
    }


def biggan_deep_tiny(resolution: int) -> dict[str, Any]:
    """`biggan-tiny` with bottleneck blocks."""
    return {**biggan_tiny(resolution), "deep": True, "ch": 8}


def sagan_tiny(resolution: int) -> dict[str, Any]:
    """`biggan-tiny` with the differences of SAGAN."""
    return {**biggan_tiny(resolution), "shared": False, "hier": False, "init": "xavier"}


def sagan(resolution: int) -> dict[str, Any]:
    """SAGAN (arXiv 1805.08318, section 4): no hierarchy, an embedding in every layer, one step each."""
    return {
        "batch": 256,
        "z_dim": 128,
        "shared": False,
        "hier": False,
        "init": "xavier",
        "bn_momentum": 0.001,
        "attention": "32",
        "g_lr": 1e-4,
        "d_lr": 4e-4,
        "d_steps": 1,
        **average(256, start=2.0),  # that of BigGAN's authors' SAGAN; the original has none
        "k": 50,
    }


def biggan32(resolution: int) -> dict[str, Any]:
    """BigGAN for CIFAR (its authors' PyTorch code): no hierarchy, no attention, four discriminator steps."""
    return {
        "batch": 50,
        "z_dim": 128,
        "shared": False,
        "hier": False,
        "init": "normal",
        "attention": "0",
        "g_lr": 2e-4,
        "d_lr": 2e-4,
        "d_steps": 4,
        **average(4 * 50, start=1.0),  # 4 times 50 images for a step of the generator
        "k": 50,
    }


def biggan_large(resolution: int) -> dict[str, Any]:
    """BigGAN as IC-GAN compares with it (arXiv 2109.05070, appendix B): 64, 128 pixels, and 256 at half the width."""
    batch = 256 if resolution == 64 else 2048  # in all; --batch-gpu says how many at a time
    return {
        "batch": batch,
        "ch": 96 if resolution == 128 else 64,
        "g_lr": 1e-4,
        "d_lr": 1e-4 if resolution == 64 else 4e-4,
        "d_steps": 1,
        **average(batch),
        "mirror": resolution < 256,
        "k": 50,
    }


def biggan_deep(resolution: int) -> dict[str, Any]:
    """BigGAN-deep (arXiv 1809.11096, appendix B): bottleneck blocks, the whole of z everywhere; trained as BigGAN."""
    return {"batch": 2048, "deep": True, "z_dim": 128, "ch": 128, **average(2 * 2048), "k": 50}


def icgan(resolution: int) -> dict[str, Any]:
    """IC-GAN on BigGAN for ImageNet, without labels or with them (arXiv 2109.05070, appendix B)."""
    small = resolution == 64
    batch = 256 if small else 2048
    return {
        "batch": batch,
        "ch": 64 if small else 96,
        "g_lr": 1e-4 if small else 4e-5,
        "d_lr": 1e-4,
        "d_steps": 1,
        **average(batch),
        "mirror": True,  # DA(d)
        "mirror_instances": resolution < 256,  # DA(i)
        "k": 50,
    }


def icgan_half(resolution: int) -> dict[str, Any]:
    """The same at 256 pixels with a third fewer channels, and more steps of the discriminator."""
    return {
        **icgan(resolution),
        "ch": 64,
        "g_lr": 1e-4,
        "d_lr": 1e-4,
        "d_steps": 2,
        **average(2 * 2048),
        "mirror_instances": True,
    }


def imagenet_lt(resolution: int) -> dict[str, Any]:
    """BigGAN, and IC-GAN with labels, for ImageNet-LT (arXiv 2109.05070, appendix B)."""
    small = resolution == 64
    return {
        "batch": 128,
        "ch": 64,
        "g_lr": 1e-5 if small else 1e-4,
        "d_lr": 1e-3 if small else 1e-4,
        "d_steps": 1 if small else 2,
        **average(128 if small else 2 * 128),
        "mirror": True,
        "aug": "diffaug",  # few images of most classes: a discriminator overfits sooner
        "diffaug": "translation",
        "k": 5,
    }


def icgan_coco(resolution: int) -> dict[str, Any]:
    """IC-GAN on BigGAN for COCO-Stuff (arXiv 2109.05070, appendix B)."""
    return {
        "batch": 256,
        "ch": 48,
        "g_lr": 1e-4,
        "d_lr": 4e-4 if resolution == 128 else 1e-4,
        "d_steps": 1,
        **average(256),
        "mirror": True,
        "mirror_instances": True,
        "aug": "diffaug",  # small data
        "diffaug": "translation",
        "k": 5,
    }


def biggan_coco(resolution: int) -> dict[str, Any]:
    """The unconditional BigGAN that it is compared with: two steps of the discriminator."""
    return {**icgan_coco(resolution), "d_steps": 2, **average(2 * 256), "mirror_instances": False}
