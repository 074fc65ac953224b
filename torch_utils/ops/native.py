"""Between the ops and the library of native ops: whether to call it, and how."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_utils import custom_ops

IMPLS = ("auto", "native", "ref")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # the order of Dtype in activations.h
KINDS = ("cpu", "cuda")

_INT, _LONG, _REAL, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
SIGNATURES = {
    "ops_bias_act_cpu": [*[_INT] * 4, *[_POINTER] * 6, *[_LONG] * 3, *[_REAL] * 3],
    "ops_upfirdn2d_cpu": [_INT, *[_POINTER] * 2, *[_LONG] * 2, *[_POINTER] * 4],
    "ops_conv3x3_cpu": [*[_INT] * 2, *[_POINTER] * 3],
    "ops_bias_act_cuda": [*[_INT] * 4, *[_POINTER] * 6, *[_LONG] * 4, *[_REAL] * 3, _POINTER],
    "ops_upfirdn2d_cuda": [*[_INT] * 2, *[_POINTER] * 3, *[_LONG] * 2, _INT, _POINTER, _INT, _REAL, _POINTER],
    "ops_upfirdn2d_small_cuda": [_INT, *[_POINTER] * 3, _INT, *[_LONG] * 2, _INT, _POINTER, _INT, _REAL, _POINTER],
}


def check_impl(impl: str) -> None:
    """Refuse an implementation that there isn't."""
    if impl not in IMPLS:
        raise ValueError(f"impl: {impl!r} is not one of {', '.join(IMPLS)}.")


def check_floating(name: str, x: Tensor) -> None:
    """Refuse anything but a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: expected a floating-point tensor, got {what}.")


def wanted(impl: str, x: Tensor, constants: Sequence[Tensor | None] = ()) -> bool:
    """Whether to compute on x by the native ops. `constants` are what they give no gradient of.

    While torch traces (torch.compile, ONNX export) the answer is no: the reference is what can be traced.

    Raises:
        ValueError: impl 'native', and the native ops don't take these tensors.
        BuildError: the library is demanded, by impl or mode, and can't be had.
    """
    check_impl(impl)
    if impl == "ref" or (impl == "auto" and custom_ops.get_mode() == "ref") or _is_traced():
        return False
    kind = x.device.type
    fits = kind in KINDS and x.dtype in DTYPES and x.layout == torch.strided
    fixed = not any(constant is not None and constant.requires_grad for constant in constants)
    if impl == "native" and not fits:
        raise ValueError(f"impl: 'native' takes {_names()} on {' or '.join(KINDS)}, got {x.dtype} on {x.device}.")
    if impl == "native" and not fixed:
        raise ValueError("impl: 'native' gives no gradient of the filter f; use 'ref', or f.detach().")
    must = impl == "native" or custom_ops.get_mode() == "native"
    return fits and fixed and custom_ops.library(kind, must) is not None


def call(name: str, x: Tensor, *arguments: object) -> None:
    """Call `name`_cpu or `name`_cuda on x's device, on its current stream.

    Raises:
        RuntimeError: a kernel could not be launched.
    """
    kind = x.device.type
    symbol = f"{name}_{kind}"
    function = getattr(custom_ops.library(kind, must=True), symbol)
    function.argtypes = SIGNATURES[symbol]
    if kind == "cpu":
        code = function(*arguments)
    else:
        with torch.cuda.device(x.device):
            code = function(*arguments, torch.cuda.current_stream(x.device).cuda_stream)
    if code != 0:
        raise RuntimeError(f"{symbol} on {x.device}: error {code}; with --ops=ref the reference computes it")


def on_gpu(x: Tensor) -> bool:
    """Whether the CUDA kernels compute on x, not those of the CPU."""
    return x.device.type == "cuda"


def aligned(x: Tensor) -> Tensor:
    """x, copied if need be so that it begins at a multiple of 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def address(x: Tensor | None) -> int | None:
    """Where the first element lies; None stands for a null pointer."""
    return None if x is None else x.data_ptr()


def in_layout_of(x: Tensor, like: Tensor) -> Tensor:
    """x, copied if need be so that its elements lie in memory as those of `like`, a dense tensor of its shape."""
    strides = zip(x.shape, x.stride(), like.stride(), strict=True)
    if all(a == b for size, a, b in strides if size > 1):
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, in whatever order of the axes."""
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
