"""Rows for WGAN."""

from typing import Any


def wgan(resolution: int) -> dict[str, Any]:
    """WGAN as published for LSUN bedrooms at 64 pixels (arXiv 1701.07875, section 4)."""
    return {
        "batch": 64,
        "ema_kimg": 0.0,  # none
    }


def wgan_gp(resolution: int) -> dict[str, Any]:
    """WGAN with a gradient penalty (arXiv 1704.00028, algorithm 1), on the networks of WGAN."""
    return {
        "batch": 64,
        "penalty": "gp",
        "g_lr": 1e-4,
        "d_lr": 1e-4,
        "ema_kimg": 0.0,
    }


def wgan_tiny(resolution: int) -> dict[str, Any]:
    """Minutes on two CPU cores, for images of up to 32 pixels; tried on the digits, seed 0."""
    return {
        "batch": 16,
        "kimg": 60.0,
        "tick": 4.0,
        "snap": 5,
        "z_dim": 24,
        "ch": 16,
        "g_lr": 5e-4,
        "d_lr": 5e-4,
        "critic_steps": 20,
        "ema_kimg": 0.5,
        "threads": 1,
        "ops": "ref",
    }
