"""Directions of w in which images change most, found in the weights alone, without labels or samples.

Source: Shen and Zhou, Closed-Form Factorization of Latent Semantics in GANs, arXiv 2007.06600, section 3.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from stylegan2_icgan.conditioning import Rows
from stylegan2_icgan.using.image_files import save_sheet
from stylegan2_icgan.using.rendering import Point, Renderer
from torch_utils.command_line import UserError


class Directions(NamedTuple):
    """Directions of unit length, the one with the largest effect first."""

    vectors: torch.Tensor  # float32 [num, w_dim]
    eigenvalues: torch.Tensor  # float32 [num]


def factorise(synthesis: torch.nn.Module, layers: Sequence[int], num: int) -> Directions:
    """The eigenvectors of A^T A with the largest eigenvalues (eq. 4 to 6); the largest entry of each is positive.

    A [channels, w_dim] joins the weights that make styles out of w, of the chosen layers.

    Args:
        synthesis: a StyleGAN2 synthesis network.
        layers: which of its styles.
        num: how many directions.
    """
    weights = style_weights(synthesis)
    joined = torch.cat([weights[layer] for layer in layers])
    eigenvalues, vectors = torch.linalg.eigh(joined.T @ joined)  # ascending; vectors in columns
    vectors = vectors.flip(1).T[:num]
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return Directions((vectors * largest.sign()).float(), eigenvalues.flip(0)[:num].float())


def style_weights(synthesis: torch.nn.Module) -> list[torch.Tensor]:
    """For each style the weight [channels, w_dim] of the affine layer of its convolution, float64 on the CPU.

    The last style is that of the last layer to the image. Those of earlier blocks share the style of the convolution
    that follows, and are left out.
    """
    layers = []
    for resolution in synthesis.resolutions:
        block = getattr(synthesis, f"b{resolution}")
        layers += [block.conv1] if block.num_conv == 1 else [block.conv0, block.conv1]
    affines = [(layer.affine, 1.0) for layer in layers] + [(block.torgb.affine, block.torgb.weight_gain)]
    return [affine.weight.detach().double().cpu() * affine.weight_gain * gain for affine, gain in affines]


def parse_layers(chosen: Sequence[int] | None, num_ws: int) -> list[int]:
    """Which styles to move; all by default."""
    beyond = next((layer for layer in chosen or () if layer >= num_ws), None)
    if beyond is not None:
        raise UserError(f"--layers: {beyond} is beyond this model's {num_ws} styles; expected 0 to {num_ws - 1}")
    return list(range(num_ws)) if chosen is None else sorted(set(chosen))


def move(ws: torch.Tensor, direction: torch.Tensor, layers: Sequence[int], step: float) -> torch.Tensor:
    """w + step n in the styles of these layers (eq. 1), [N, num_ws, w_dim]."""
    moved = ws.clone()
    moved[:, list(layers)] += step * direction.to(ws.device)
    return moved


def write_strips(
    renderer: Renderer,
    table: Rows,
    points: Sequence[Point],
    found: Directions,
    layers: Sequence[int],
    steps: Sequence[float],
    outdir: Path,
) -> None:
    """A sheet for each direction: a row per point, a column per step along it; the instance at the left."""
    styles = [renderer.styles_of(table, point) for point in points]
    explaining = table.images[[point.row for point in points]]
    for number, direction in enumerate(found.vectors):
        images = []
        for point, ws in zip(points, styles, strict=True):
            for step in steps:
                renderer.seed_noise(point.seed, table.names[point.row])
                images.append(renderer.from_styles(move(ws, direction, layers, step))[0])
        strip = torch.stack(images).unflatten(0, (len(points), len(steps)))
        save_sheet(strip, explaining, outdir / f"direction{number:02d}.png")
