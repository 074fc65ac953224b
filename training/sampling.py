"""Seeds and conditions -> images, in one place: range conversion, truncation, noise mode."""

from collections.abc import Sequence

import numpy as np
import torch

from training.condition import Condition


def z_from_seeds(seeds: Sequence[int], z_dim: int) -> torch.Tensor:
    """float32 [len(seeds), z_dim] ~ N(0, 1); one NumPy generator a seed, as the StyleGAN2-ADA world does it."""
    rows = [np.random.RandomState(seed).randn(z_dim) for seed in seeds]
    return torch.from_numpy(np.stack(rows)).float()


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float [-1, 1] -> uint8 0..255, rounded to nearest; what lies outside is clipped."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 [-1, 1]."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def sample_images(
    generator: torch.nn.Module,
    z: torch.Tensor,
    condition: Condition,
    *,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    noise_mode: str = "const",
    batch: int = 32,
) -> torch.Tensor:
    """uint8 [N, C, H, W] on the CPU, for N rows of z and condition.

    The batch size can change the last bits of a sum; whoever promises the same bytes uses one batch size throughout.
    """
    if len(z) != len(condition):
        raise ValueError(f"z has {len(z)} rows, the condition {len(condition)}")
    device = next(generator.parameters()).device
    parts = []
    for rows, cond in zip(z.split(batch), condition.split(batch), strict=True):
        cond = cond.to(device)
        images = generator(
            rows.to(device),
            cond.c,
            cond.h,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            noise_mode=noise_mode,
        )
        parts.append(to_uint8(images).cpu())
    return torch.cat(parts)


@torch.no_grad()
def render_styles(
    generator: torch.nn.Module, ws: torch.Tensor, noise_mode: str = "const", batch: int = 1
) -> torch.Tensor:
    """uint8 [N, C, H, W] on the CPU of styles ws, float32 [N, num_ws, w_dim].

    Whatever shows an image of a w goes through here, so that a w that was saved gives the same bytes again. The default
    of one image at a time makes them independent of what else is rendered.
    """
    device = next(generator.parameters()).device
    images = (generator.synthesis(some.to(device), noise_mode=noise_mode) for some in ws.split(batch))
    return torch.cat([to_uint8(some).cpu() for some in images])
