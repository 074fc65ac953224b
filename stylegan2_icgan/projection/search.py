"""The search: Adam on what an image is made of (StyleGAN2, arXiv 1912.04958, appendix D)."""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from stylegan2_icgan.projection.distances import Distance
from stylegan2_icgan.projection.latents import Latents
from stylegan2_icgan.projection.noise_maps import Maps, autocorrelation, normalise_, synthesise
from stylegan2_icgan.projection.options import SearchOptions
from torch_utils.command_line import UserError
from training.randomness import seed_everything

# Appendix D, as shares of its 1000 steps.
NOISE_SCALE, NOISE_UNTIL = 0.05, 0.75  # noise of w, in deviations of w
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # of the learning rate
AUTOCORRELATION_WEIGHT = 1e5

Observe = Callable[[int, Tensor, Tensor], None]  # steps done, images [N, C, R, R] about [-1, 1], distances [N]


def style_noise(t: float) -> float:
    """Standard deviation of what is added to w, in deviations of w, at the share t of the search."""
    return NOISE_SCALE * max(0.0, 1 - t / NOISE_UNTIL) ** 2


def learning_rate(t: float) -> float:
    """Share of the highest learning rate at the share t of the search: linear up, cosine down."""
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / RAMP_DOWN))
    return down * min(1.0, t / RAMP_UP)


class Clip(torch.autograd.Function):
    """Clip to [-1, 1], as a file is; a pixel beyond has the gradient that calls it back, and none that drives it on."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.save_for_backward(images)
        return images.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (images,) = ctx.saved_tensors
        outwards = (images.abs() > 1) & (images * grad < 0)  # a step goes against the gradient
        return grad.masked_fill(outwards, 0)


def search(
    generator: torch.nn.Module,
    latents: Latents,
    deviation: Tensor,
    maps: Maps,
    distance: Distance,
    options: SearchOptions,
    looks: Collection[int],
    observe: Observe,
) -> None:
    """Move the latents and the noise maps, in place, until the generator makes the targets of them.

    Nothing is shared between the targets: each goes the same way alone as in company.

    Args:
        deviation: of w, [N].
        maps: float32 [N, r, r] each, to be moved; empty: the network keeps its own.
        looks: numbers of steps done after which `observe` is called; always after the last.

    Raises:
        UserError: the distance is no longer a number.
    """
    for noise in maps.values():
        noise.requires_grad_()
    optimizer = torch.optim.Adam([*latents.parameters, *maps.values()], lr=options.lr)

    def look(step: int) -> None:
        with torch.no_grad():
            images = synthesise(generator, latents.styles(), maps).clamp(-1, 1)
            distances = distance(images)
        if not distances.isfinite().all():
            raise UserError(
                f"--lr={options.lr}: after {step} steps the distance is not a number; try a lower rate, or another "
                "snapshot"
            )
        observe(step, images, distances)

    for step in range(options.steps):
        if step in looks:
            look(step)
        t = (step + 0.5) / options.steps
        optimizer.param_groups[0]["lr"] = options.lr * learning_rate(t)

        # Add noise to w, the same for all targets.
        seed_everything(options.seed, step)
        w = latents.styles()  # [N, num_ws, w_dim]
        noise = torch.randn(1, w.shape[1] if options.space == "w+" else 1, w.shape[2]).to(w.device)
        w = w + style_noise(t) * deviation[:, None, None] * noise

        # Move towards the targets, and keep noise noise.
        loss = distance(Clip.apply(synthesise(generator, w, maps)))
        if maps:
            loss = loss + AUTOCORRELATION_WEIGHT * autocorrelation(maps)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()
        normalise_(maps)
    look(options.steps)
