"""Rows for CSGAN."""

from typing import Any


def csgan(resolution: int) -> dict[str, Any]:
    """CSGAN (arXiv 1901.03554) with the settings of CycleGAN (arXiv 1703.10593, section 4), for 400 pairs."""
    return {
        "batch": 1,
        "kimg": 80.0,  # 200 epochs of the 400 pairs of CMP Facades; give 0.2 for each pair of other data
        "lr_hold": 40.0,  # half of --kimg
        "tick": 0.4,
        "snap": 10,
        "ema_kimg": 0.0,  # none, as published
    }


def csgan_tiny(resolution: int) -> dict[str, Any]:
    """Minutes on two CPU cores, for images of up to 32 pixels; tried on edges of the digits, seed 0."""
    return {
        "batch": 4,
        "kimg": 12.0,
        "lr_hold": 6.0,
        "tick": 2.0,
        "snap": 3,
        "ch": 16,
        "blocks": 2,
        "cs_weight": 3.0,  # with the published 30 both generators end with one image, whatever they are given
        "g_lr": 1e-3,
        "d_lr": 2e-4,
        "ema_kimg": 0.5,
        "threads": 1,
        "ops": "ref",
    }
