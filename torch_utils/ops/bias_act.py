"""Bias, activation, gain and clamp in one call: y = clamp(gain * act(x + b))."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils.ops.bias_act_native import Settings, bias_act_native
from torch_utils.ops.native import check_floating, wanted


class Activation(NamedTuple):
    """One row of the table below."""

    function: Callable[[Tensor], Tensor]  # out of place, no parameters
    default_gain: float = 1.0  # keeps the second moment of unit normal data: sqrt(2) where about half is cut away


activations: dict[str, Activation] = {
    "linear": Activation(lambda x: x),
    "relu": Activation(functional.relu, math.sqrt(2)),
    "lrelu": Activation(lambda x: functional.leaky_relu(x, 0.2), math.sqrt(2)),
    "tanh": Activation(torch.tanh),
    "sigmoid": Activation(torch.sigmoid),
    "elu": Activation(functional.elu),
    "selu": Activation(functional.selu),
    "softplus": Activation(functional.softplus),
    "swish": Activation(functional.silu, math.sqrt(2)),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """y = clamp(gain * act(x + b)), differentiable to any order the activation is.

    Args:
        x: any shape, floating point, any strides.
        b: [x.shape[dim]] in x's dtype, added along `dim`; None adds nothing.
        dim: the axis of x that b runs along; unused without b.
        act: a key of `activations`.
        alpha: slope of lrelu below zero, None: 0.2. The other activations have no parameter and ignore it.
        gain: factor after the activation, None: the activation's own (sqrt(2) for relu, lrelu and swish, else 1).
        clamp: bound >= 0, the result lies in [-clamp, clamp]; None: no bound.
        impl: 'auto', 'native' or 'ref', see `torch_utils.custom_ops.set_mode`.

    Returns:
        x's shape and dtype. It may be x itself when there is nothing to do.

    Raises:
        ValueError: an argument is not one of the above; the message names it.
    """
    check_floating("x", x)
    if act not in activations:
        raise ValueError(f"act: {act!r} is not one of {', '.join(activations)}.")
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp: {clamp} is negative; give a bound >= 0, or None for no bound.")
    if b is not None:
        if not -x.ndim <= dim < x.ndim:
            raise ValueError(f"dim: {dim} is not an axis of x, whose shape is {list(x.shape)}.")
        if b.shape != x.shape[dim : dim + 1 or None] or b.dtype != x.dtype:
            raise ValueError(
                f"b: expected shape [{x.shape[dim]}] and {x.dtype}, as x {list(x.shape)} has along dim {dim}, "
                f"got {list(b.shape)} and {b.dtype}."
            )
        if b.device != x.device:
            raise ValueError(f"b: is on {b.device}, x is on {x.device}; move it with b.to(x.device).")
    gain = activations[act].default_gain if gain is None else gain
    alpha = 0.2 if alpha is None else alpha
    if wanted(impl, x) and (act != "linear" or b is not None or gain != 1 or clamp is not None):
        bound = math.inf if clamp is None else float(clamp)
        return bias_act_native(x, b, Settings(dim, act, float(alpha), float(gain), bound))
    return _bias_act_ref(x, b, dim, act, float(alpha), float(gain), clamp)


def _bias_act_ref(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    shape = [1] * x.ndim
    if b is not None:
        shape[dim] = -1

    # Fold a gain >= 0 into the addition where the activation commutes with it: linear, relu and lrelu. One pass over
    # memory instead of two; the activation then overwrites the sum, which nothing else holds.
    y = x
    folds = act == "linear" or (act in ("relu", "lrelu") and gain >= 0)
    if folds and b is not None:
        y = torch.add((b * gain).reshape(shape), x, alpha=gain)
    elif folds and gain != 1:
        y = x * gain
    elif b is not None:
        y = x + b.reshape(shape)

    if act == "lrelu":
        y = functional.leaky_relu(y, alpha, inplace=y is not x and alpha >= 0)
    elif act == "relu":
        y = functional.relu(y, inplace=y is not x)
    else:
        y = activations[act].function(y)
    if not folds and gain != 1:
        y = y * gain
    return y if clamp is None else functional.hardtanh(y, -clamp, clamp)  # faster backward than torch.clamp
