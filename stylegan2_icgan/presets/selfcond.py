"""Rows for self-conditioned GANs on networks of their own; every other system has --cond=cluster, too."""

from typing import Any


def selfcond(resolution: int) -> dict[str, Any]:
    """As published for CIFAR-10 (arXiv 2006.10728, supplement), but for the networks: see docs/systems/selfcond.md."""
    return {
        "batch": 64,
        "kimg": 12_500.0,  # 250 epochs
        "mirror": True,
        "cond": "cluster",
        "clusters": 100,
        "recluster_kimg": 1600.0,  # 25,000 steps
        "cluster_images": 25_000,
        "ema_kimg": 0.0,  # none
    }


def selfcond_tiny(resolution: int) -> dict[str, Any]:
    """Minutes on two CPU cores, for images of up to 32 pixels; tried on the digits, seed 0."""
    return {
        "batch": 16,
        "kimg": 60.0,
        "tick": 4.0,
        "snap": 5,
        "z_dim": 24,
        "ch": 16,
        "embed_dim": 24,
        "g_lr": 5e-4,
        "d_lr": 5e-4,
        "cond": "cluster",
        "clusters": 20,
        "ema_kimg": 0.5,
        "threads": 1,
        "ops": "ref",
        "k": 10,
    }
