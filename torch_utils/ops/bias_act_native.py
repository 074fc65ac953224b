"""bias_act by the native ops, with first and second derivatives.

u = x + b, y = clamp(gain * act(u)). The derivative of a piecewise linear activation is told by the sign of y, which the
next layer keeps anyway; the others keep x and b. What a kernel computes is in activations.h.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from torch_utils.ops.native import DTYPES, address, aligned, call, in_layout_of, is_dense, on_gpu

ACTS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")  # as Act in activations.h
FORWARD, SLOPE, CURVATURE = range(3)
MOST_PARTS = 2048  # blocks that a GPU shares the sum of a channel out to


class Settings(NamedTuple):
    """What bias_act was called with, beside its tensors."""

    dim: int  # of the bias
    act: str
    alpha: float  # slope below zero of a piecewise linear activation
    gain: float
    clamp: float  # inf: none

    @property
    def is_piecewise(self) -> bool:
        """Whether the second derivative vanishes."""
        return self.act in ("linear", "relu", "lrelu")

    @property
    def needs_nothing(self) -> bool:
        """Whether the derivative is the gain everywhere."""
        return self.act == "linear" and self.clamp == math.inf

    @property
    def from_result(self) -> bool:
        """Whether the derivative is computed from y. With alpha < 0 the sign of y does not tell that of u."""
        return self.is_piecewise and self.alpha >= 0


def bias_act_native(x: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
    """As `bias_act`, whose arguments have been checked."""
    slopes = {"linear": 1.0, "relu": 0.0, "lrelu": settings.alpha}
    settings = settings._replace(alpha=slopes.get(settings.act, 0.0), dim=settings.dim % x.ndim if x.ndim else 0)
    if not is_dense(x):
        x = x.contiguous()
    y: Tensor = _BiasAct.apply(x, None if b is None else b.contiguous(), settings)
    return y


def _launch(
    order: int, a: Tensor, ref: Tensor | None, dy: Tensor | None, b: Tensor | None, s: Settings, with_sum: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The kernel's result, in a's layout, and its sum over all axes but s.dim, in a's dtype."""
    channels, inner = 1, 1
    if a.ndim and (b is not None or with_sum):
        channels, stride = a.shape[s.dim], a.stride(s.dim)
        # Axes that lie inside that of the bias: all whose stride is smaller.
        sizes = [size for size, step in zip(a.shape, a.stride(), strict=True) if size > 1 and step < stride]
        inner = math.prod(sizes) if channels > 1 else a.numel()
    outer = a.numel() // (channels * inner) if a.numel() else 0
    run = _launch_gpu if on_gpu(a) else _launch_cpu
    return run(order, a, ref, dy, b, s, (outer, channels, inner), with_sum)


def _launch_cpu(
    order: int,
    a: Tensor,
    ref: Tensor | None,
    dy: Tensor | None,
    b: Tensor | None,
    s: Settings,
    sizes: tuple[int, int, int],  # outer, channels, inner
    with_sum: bool,
) -> tuple[Tensor, Tensor | None]:
    out = torch.empty_like(a)
    sums = torch.zeros(sizes[1], dtype=torch.float64) if with_sum else None
    if a.numel():
        pointers = [address(tensor) for tensor in (out, a, ref, dy, b, sums)]
        call("ops_bias_act", a, *_codes(order, a, s), *pointers, *sizes, s.alpha, s.gain, s.clamp)
    return out, None if sums is None else sums.to(a.dtype)


def _launch_gpu(
    order: int,
    a: Tensor,
    ref: Tensor | None,
    dy: Tensor | None,
    b: Tensor | None,
    s: Settings,
    sizes: tuple[int, int, int],
    with_sum: bool,
) -> tuple[Tensor, Tensor | None]:
    out, (outer, channels, inner) = torch.empty_like(a), sizes
    fused = with_sum and s.is_piecewise
    # Blocks of about 4096 elements of a channel each, or of 16384 elements where the channels are innermost.
    parts = max(min(MOST_PARTS, outer * inner // 4096 if inner > 1 else outer * channels // 16384), 1)
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    sums = torch.zeros((parts, channels), dtype=wide, device=a.device) if fused else None
    if a.numel():
        a, ref, dy = aligned(a), None if ref is None else aligned(ref), None if dy is None else aligned(dy)
        pointers = [address(tensor) for tensor in (out, a, ref, dy, b, sums)]
        call("ops_bias_act", a, *_codes(order, a, s), *pointers, *sizes, parts, s.alpha, s.gain, s.clamp)
    if sums is not None:
        return out, sums.sum(0).to(a.dtype)
    if not with_sum:
        return out, None
    others = [axis for axis in range(out.ndim) if axis != s.dim]
    return out, out.sum(others) if others else out.clone()  # torch takes an empty list for all axes


def _codes(order: int, a: Tensor, s: Settings) -> tuple[int, int, int, int]:
    return DTYPES.index(a.dtype), ACTS.index(s.act), order, int(s.from_result)


class _BiasAct(Function):
    """x, b -> y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor | None, s: Settings) -> Tensor:
        y, _ = _launch(FORWARD, x, None, None, b, s)
        ctx.settings, ctx.has_bias = s, b is not None
        if s.from_result:
            ctx.save_for_backward(*(() if s.needs_nothing else (y,)))
        else:
            ctx.save_for_backward(x, b)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        s, saved = ctx.settings, ctx.saved_tensors
        ref = saved[0] if saved else None
        b = saved[1] if len(saved) > 1 else None
        with_sum = ctx.has_bias and ctx.needs_input_grad[1]
        dx, db = _Slope.apply(dy, ref, b, s, with_sum)
        return dx, db, None


class _Slope(Function):
    """dy, y or x, b -> dx = dy * dv/du, db = its sum."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, ref: Tensor | None, b: Tensor | None, s: Settings, with_sum: bool
    ) -> tuple[Tensor, Tensor | None]:
        if ref is not None:
            dy = in_layout_of(dy, ref)
        elif not is_dense(dy):
            dy = dy.contiguous()
        ctx.settings, ctx.shape = s, dy.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(None if s.is_piecewise else dy, ref, b)
        return _launch(SLOPE, dy, ref, None, b, s, with_sum)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor | None, ddb: Tensor | None) -> tuple[Tensor | None, ...]:
        (dy, ref, b), s = ctx.saved_tensors, ctx.settings
        if ddb is not None:
            along = ddb.reshape([-1 if axis == s.dim else 1 for axis in range(len(ctx.shape))]).expand(ctx.shape)
            ddx = along if ddx is None else ddx + along
        if ddx is None:
            return None, None, None, None, None
        ddy = dx = db = None
        if ctx.needs_input_grad[0]:
            ddy, _ = _Slope.apply(ddx, ref, b, s, False)
        if not s.is_piecewise and any(ctx.needs_input_grad[1:3]):
            dx, db = _Curvature.apply(ddx, dy, ref, b, s, ctx.needs_input_grad[2])
        return ddy, dx, db, None, None


class _Curvature(Function):
    """ddx, dy, x, b -> ddx * dy * d2v/du2, and its sum. There is no third derivative."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, ddx: Tensor, dy: Tensor, x: Tensor, b: Tensor | None, s: Settings, with_sum: bool
    ) -> tuple[Tensor, Tensor | None]:
        return _launch(CURVATURE, in_layout_of(ddx, x), x, dy, b, s, with_sum)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[None, ...]:
        raise NotImplementedError("bias_act: a third derivative; the reference has one, impl='ref'")
