"""3x3 convolutions on the CPU with 36 multiplications where torch's take 144; differentiable to any order.

Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308, section 4): y = A^T [sum over channels of
(G w G^T) * (B^T x B)] A for tiles of 4 x 4 results. conv3x3.cpp has A and B; the sums are products of matrices. The
gradient of x is a convolution with the weights turned round, that of w is G^T [sum over tiles of
(A dy A^T) * (B^T x B)] G.
"""

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torch_utils.ops.native import DTYPES, address, call, wanted

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # as in conv3x3.cpp
TILE = 4  # results along an axis
NUM_PRODUCTS = (len(POINTS) + 1) ** 2  # of a tile
TO_PRODUCTS, GRADIENT_TO_PRODUCTS, TO_RESULTS = range(3)  # Transform in conv3x3.cpp
MOST_TILES = 128  # at a time: their products stay in the second or third cache
FEWEST_TILES = 64  # with fewer, transforming the weights costs more than is saved
FEWEST_CHANNELS = 32  # with fewer, transforming the images does


class Weights(NamedTuple):
    """How the numbers of w are to be read."""

    is_flipped: bool  # from the other end, in both axes: a convolution in the strict sense
    is_transposed: bool  # [in, out, 3, 3], not [out, in, 3, 3]


def fits(x: Tensor, w: Tensor) -> bool:
    """Whether `conv3x3` can compute on these, and is the faster way to."""
    return (
        wanted("auto", x)  # asked first: while torch traces nothing else may be, it would fix the batch
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and x.dtype in (torch.float32, torch.float64)
        and w.shape[2:] == (3, 3)
        and all(channels % 8 == 0 and channels >= FEWEST_CHANNELS for channels in w.shape[:2])
        and _num_tiles(x) >= FEWEST_TILES
    )


def conv3x3(x: Tensor, w: Tensor, flip: bool) -> Tensor:
    """As torch's conv2d with padding 1, for what `fits`; the result has its channels last.

    Args:
        x: [N, in_channels, H, W].
        w: [out_channels, in_channels, 3, 3].
        flip: turn the weights round, so that they are convolved with and not correlated.
    """
    y: Tensor = _Conv3x3.apply(x, w, Weights(flip, False))
    return y


class _Conv3x3(Function):
    """x, w -> y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, how: Weights) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = how
        x = x.contiguous(memory_format=torch.channels_last)
        spread = (_spread(how.is_flipped, w.dtype) @ w.reshape(-1, 9).t()).unflatten(1, w.shape[:2])  # [36, ., .]
        spread = spread if how.is_transposed else spread.transpose(1, 2)  # [36, in, out]
        y = x.new_empty(len(x), *x.shape[2:], spread.shape[2]).permute(0, 3, 1, 2)
        for first, count in _parts(x):
            sums = torch.bmm(_products(TO_PRODUCTS, x, first, count), spread)  # [36, count, out]
            _transform(TO_RESULTS, y, sums, y, first)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, w), how = ctx.saved_tensors, ctx.how
        dx = dw = None
        if _is_asked_for(ctx, 0):
            dx = _Conv3x3.apply(dy, w, _turned(how))
        if _is_asked_for(ctx, 1):
            dw = _WeightGradient.apply(x, dy, how)
        return dx, dw, None


class _WeightGradient(Function):
    """x, dy -> dw."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dy: Tensor, how: Weights) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.how = how
        x = x.contiguous(memory_format=torch.channels_last)
        dy = dy.contiguous(memory_format=torch.channels_last)
        shape = (x.shape[1], dy.shape[1]) if how.is_transposed else (dy.shape[1], x.shape[1])
        sums = x.new_zeros(NUM_PRODUCTS, *shape)
        for first, count in _parts(x):
            left = _products(GRADIENT_TO_PRODUCTS, dy, first, count)  # [36, count, out]
            right = _products(TO_PRODUCTS, x, first, count)  # [36, count, in]
            left, right = (right, left) if how.is_transposed else (left, right)
            torch.baddbmm(sums, left.transpose(1, 2), right, out=sums)
        return (sums.flatten(1).t() @ _spread(how.is_flipped, x.dtype)).view(*sums.shape[1:], 3, 3)

    @staticmethod
    def backward(ctx: Any, ddw: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, dy), how = ctx.saved_tensors, ctx.how
        dx = ddy = None
        if _is_asked_for(ctx, 0):
            dx = _Conv3x3.apply(dy, ddw, _turned(how))
        if _is_asked_for(ctx, 1):
            ddy = _Conv3x3.apply(x, ddw, how)
        return dx, ddy, None


def _is_asked_for(ctx: Any, index: int) -> bool:
    """Whether the gradient of an input goes anywhere in this backward pass.

    R1 asks for that of x alone, which `needs_input_grad` doesn't tell. Where torch can't tell either, it is.
    """
    if not ctx.needs_input_grad[index]:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[index][0]))
    except (AttributeError, RuntimeError):  # of a leaf that somebody wants the gradient of
        return True


def _turned(how: Weights) -> Weights:
    """Of the convolution that takes a gradient back."""
    return Weights(not how.is_flipped, not how.is_transposed)


@lru_cache(maxsize=8)
def _spread(is_flipped: bool, dtype: torch.dtype) -> Tensor:
    """G in both axes, [36, 9]: weights -> what products are taken with.

    A row of G holds the powers of a point over the product of its distances from the others.
    """
    rows = [[0.0, 0.0, 1.0]]  # of infinity, the last one
    for point in reversed(POINTS):
        distances = [point - other for other in POINTS if other != point]
        scale = 1.0
        for distance in distances:
            scale *= distance
        rows.insert(0, [point**power / scale for power in range(3)])
    g = torch.tensor(rows, dtype=torch.float64)
    both = torch.kron(g, g)
    return (both.flip(1) if is_flipped else both).to(dtype)


def _num_tiles(x: Tensor) -> int:
    return len(x) * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)


def _parts(x: Tensor) -> list[tuple[int, int]]:
    """(first, number) of the tiles to work on at a time.

    The number is odd: a power of two apart, the products of a tile would push each other out of the cache.
    """
    total = _num_tiles(x)
    step = -(-total // (total // MOST_TILES + 1)) | 1
    return [(first, min(step, total - first)) for first in range(0, total, step)]


def _products(kind: int, images: Tensor, first: int, count: int) -> Tensor:
    """Those of some tiles, [36, count, channels]."""
    products = images.new_empty(NUM_PRODUCTS, count, images.shape[1])
    _transform(kind, products, images, images, first)
    return products


def _transform(kind: int, to: Tensor, origin: Tensor, images: Tensor, first: int) -> None:
    products = to if origin is images else origin
    sizes = (*images.shape[2:], images.shape[1], first, products.shape[1])
    array = (ctypes.c_int64 * len(sizes))(*sizes)
    call("ops_conv3x3", images, DTYPES.index(images.dtype), kind, address(to), address(origin), array)
