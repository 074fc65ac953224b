"""Rows for systems on BigGAN's networks: LOGAN, U-Net GAN, ADC-GAN."""

from typing import Any

from stylegan2_icgan.presets.biggan import average, biggan32, biggan_deep, biggan_tiny


def logan(resolution: int) -> dict[str, Any]:
    """LOGAN as published for ImageNet (arXiv 1912.00953): BigGAN-deep with a wider z and LeakyReLUs."""
    return {**biggan_deep(resolution), "z_dim": 256}


def logan_tiny(resolution: int) -> dict[str, Any]:
    """`biggan-tiny` with the latent steps of StudioGAN's CIFAR networks; tried on the digits, seed 0."""
    return {
        **biggan_tiny(resolution),
        "kimg": 20.0,
        "latent_damping": 0.1,
        "latent_share": 0.8,
        "latent_cost": 0.1,
    }


def unet128(resolution: int) -> dict[str, Any]:
    """U-Net GAN as published for COCO-Animals at 128 pixels (arXiv 2002.12655, appendix)."""
    return {
        "batch": 80,
        **average(80, start=21.0),
        "cutmix_warmup": 95_000,  # 200 epochs of 38,000 images
        "k": 50,
    }


def unet256(resolution: int) -> dict[str, Any]:
    """U-Net GAN as published for FFHQ at 256 pixels (arXiv 2002.12655, appendix)."""
    return {
        "batch": 20,
        "g_lr": 1e-4,
        "d_lr": 5e-4,
        **average(20, start=21.0),
        "cutmix_warmup": 350_000,  # 100 epochs of 70,000 images
        "k": 50,
    }


def unet_tiny(resolution: int) -> dict[str, Any]:
    """Minutes on two CPU cores, for images of up to 32 pixels; tried on the digits, seed 0."""
    return {
        "batch": 16,
        "kimg": 30.0,
        "tick": 2.0,
        "snap": 5,
        "z_dim": 24,
        "ch": 2,
        "shared_dim_feat": 32,
        "g_lr": 1e-3,
        "d_lr": 2e-3,
        "cutmix_warmup": 1000,
        "ema_kimg": 0.5,
        "threads": 1,
        "ops": "ref",
        "k": 10,
    }


def adc_cifar(resolution: int) -> dict[str, Any]:
    """ADC-GAN as published for CIFAR (arXiv 2107.10060): the CIFAR networks of BigGAN."""
    return {
        **biggan32(resolution),
        "kimg": 50_000.0,  # 1000 epochs
    }


def adc_tiny(resolution: int) -> dict[str, Any]:
    """`biggan-tiny`; tried on the digits, seed 0."""
    return biggan_tiny(resolution)
