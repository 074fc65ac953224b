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


PRESETS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {  # name -> system, values at a resolution
    "auto": ("stylegan2", _auto),
    "tiny": ("stylegan2", _tiny),
}
