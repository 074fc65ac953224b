"""Bilinear lookup that R1 can go through: torch has no second derivative of its own.

On torch 2.11 differentiating the gradient of `torch.nn.functional.grid_sample` ends with "derivative for
aten::grid_sampler_2d_backward is not implemented", on every device. The lookup is linear in the image, so none is
missing in principle: with A the matrix of the lookup, the gradient is A^T times what comes back, and the gradient of
that is A times what comes back then. The two functions below are A and A^T, each the other's backward; they may be
differentiated any number of times.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PADDING_MODES = ("zeros", "border", "reflection")


def grid_sample(image: Tensor, grid: Tensor, padding_mode: str = "zeros", align_corners: bool = False) -> Tensor:
    """Look an image up at the points of a grid, bilinearly; differentiable in the image to any order.

    Args:
        image: [N, C, H, W], floating point.
        grid: points (x, y), [N, H', W', 2] in the image's dtype; -1 and 1 are the image's edges. It gets no gradient.
        padding_mode: what lies outside: 'zeros', 'border' or 'reflection'.
        align_corners: whether -1 and 1 mean the centres (True) or the outer edges (False) of the first and last pixel.

    Returns:
        [N, C, H', W'] in the image's dtype.

    Raises:
        ValueError: an argument is not one of the above, or the grid wants a gradient.
    """
    if image.ndim != 4 or not image.is_floating_point():
        raise ValueError(f"image: expected floating-point [N, C, H, W], got {image.dtype} {list(image.shape)}.")
    if grid.ndim != 4 or grid.shape[0] != image.shape[0] or grid.shape[3] != 2:
        raise ValueError(f"grid: expected [{image.shape[0]}, height, width, 2], got {list(grid.shape)}.")
    if grid.dtype != image.dtype:
        raise ValueError(f"grid: is {grid.dtype}, the image {image.dtype}; make both the same.")
    if grid.requires_grad:
        raise ValueError("grid: wants a gradient, and gets none here; give grid.detach().")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode: {padding_mode!r} is not one of {', '.join(PADDING_MODES)}.")
    return _Lookup.apply(image, grid, padding_mode, align_corners)  # type: ignore[no-any-return]


def _lookup(image: Tensor, grid: Tensor, padding_mode: str, align_corners: bool) -> Tensor:
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode=padding_mode, align_corners=align_corners)


class _Lookup(torch.autograd.Function):
    """A: values at the points of the grid."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, grid: Tensor, padding_mode: str, align_corners: bool) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape, ctx.options = image.shape, (padding_mode, align_corners)
        return _lookup(image, grid, padding_mode, align_corners)

    @staticmethod
    def backward(ctx: Any, values: Tensor) -> tuple[Tensor, None, None, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(values, grid, ctx.shape, *ctx.options), None, None, None


class _Spread(torch.autograd.Function):
    """A^T: every value goes to the pixels its point was looked up from, by the same weights."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, grid: Tensor, shape: torch.Size, padding_mode: str, align_corners: bool
    ) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.options = (padding_mode, align_corners)
        # Torch offers A^T in public only as the gradient of A, at whatever image: at one that takes no memory.
        with torch.enable_grad():
            image = values.new_zeros(()).expand(shape).requires_grad_()
            (spread,) = torch.autograd.grad(_lookup(image, grid, padding_mode, align_corners), image, values)
        return spread

    @staticmethod
    def backward(ctx: Any, image: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grid,) = ctx.saved_tensors
        return _Lookup.apply(image, grid, *ctx.options), None, None, None, None
