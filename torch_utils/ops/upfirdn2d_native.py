"""upfirdn2d by the native ops. Its gradient is upfirdn2d once more, so there are derivatives of any order."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torch_utils.ops.native import DTYPES, address, aligned, call, on_gpu

Sides = tuple[int, int, int, int]
Rows = tuple[tuple[float, ...], ...]


class Settings(NamedTuple):
    """What upfirdn2d was called with, beside its tensors; pairs are (x, y)."""

    up: tuple[int, int]
    down: tuple[int, int]
    sides: Sides  # x before, x after, y before, y after
    flip: bool  # correlate, not convolve
    gain: float

    def out_size(self, height: int, width: int, taps_y: int, taps_x: int) -> tuple[int, int]:
        """Height and width of the result."""
        x0, x1, y0, y1 = self.sides
        return (
            (height * self.up[1] + y0 + y1 - taps_y) // self.down[1] + 1,
            (width * self.up[0] + x0 + x1 - taps_x) // self.down[0] + 1,
        )

    def of_gradient(self, size: tuple[int, int], out_size: tuple[int, int], taps: tuple[int, int]) -> "Settings":
        """Settings that bring the gradient of the result, [out_size], to that of the image; all (y, x).

        With z the upsampled image, y[o] = sum_j f[j] z[o down + j - before]; so dy[o] meets z[i up] at the tap
        j = i up - o down + before, counted from the other end in the flipped filter.
        """
        sides: list[int] = []
        for axis in (1, 0):  # x, then y
            up, down = self.up[1 - axis], self.down[1 - axis]
            before = self.sides[0 if axis == 1 else 2]
            after = size[axis] * up - out_size[axis] * down + before - up + 1
            sides += [taps[axis] - 1 - before, after]
        return Settings(self.down, self.up, (sides[0], sides[1], sides[2], sides[3]), not self.flip, self.gain)


def upfirdn2d_native(x: Tensor, f: Tensor | None, settings: Settings) -> Tensor:
    """As `upfirdn2d`, whose arguments have been checked; x has at least one element."""
    if f is None:
        f = torch.ones([1, 1], dtype=torch.float32, device=x.device)
    y: Tensor = _Upfirdn2d.apply(x, f, settings)
    return y


class _Upfirdn2d(Function):
    """x -> y; f is a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, settings: Settings) -> Tensor:
        taps = (f.shape[0], f.shape[-1])
        out_size = settings.out_size(x.shape[2], x.shape[3], *taps)
        ctx.save_for_backward(f)
        ctx.settings = settings.of_gradient((x.shape[2], x.shape[3]), out_size, taps)
        return _run_gpu(x, f, settings, out_size) if on_gpu(x) else _run_cpu(x, f, settings, out_size)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        return _Upfirdn2d.apply(dy, ctx.saved_tensors[0], ctx.settings), None, None


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _run_cpu(x: Tensor, f: Tensor, s: Settings, out_size: tuple[int, int]) -> Tensor:
    last = _channels_last(x)
    x = x if last else x.contiguous()
    y, (num, channels, _, _) = _empty(x, out_size, x.dtype), x.shape
    column, row, taps = _taps(_rows(f), f.ndim == 1, not s.flip, s.gain, torch.finfo(x.dtype).eps)
    axes = _axes(x, out_size, s, f.shape[0], f.shape[-1])
    planes = (num, channels) if last else (num * channels, 1)
    call("ops_upfirdn2d", x, DTYPES.index(x.dtype), address(y), address(x), *planes, axes, column, row, taps)
    return y


def _rows(f: Tensor) -> Rows:
    return tuple(tuple(row) for row in f.reshape(-1, f.shape[-1]).tolist())


@lru_cache(maxsize=64)
def _taps(rows: Rows, is_1d: bool, reverse: bool, gain: float, eps: float) -> tuple[Any, Any, Any]:
    """Arrays of double for the kernel, in the order of a correlation: column and row of a product, or all taps."""
    parts: tuple[Sequence[float], Sequence[float]] | None = (rows[0], rows[0]) if is_1d else factor(rows, eps)
    step = -1 if reverse else 1
    if parts is None:
        flat = [gain * tap for row in rows for tap in row][::step]
        return None, None, (ctypes.c_double * len(flat))(*flat)
    column, row = [gain * tap for tap in parts[0]][::step], list(parts[1])[::step]
    return (ctypes.c_double * len(column))(*column), (ctypes.c_double * len(row))(*row), None


def factor(rows: Rows, eps: float) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(column, row) with rows[y][x] = column[y] * row[x] to within eps of the largest tap, or None."""
    largest, y, x = max((abs(tap), y, x) for y, row in enumerate(rows) for x, tap in enumerate(row))
    if largest == 0:
        return (0.0,) * len(rows), rows[0]
    column, row = tuple(line[x] / rows[y][x] for line in rows), rows[y]
    near = all(
        abs(tap - a * b) <= eps * largest
        for a, line in zip(column, rows, strict=True)
        for b, tap in zip(row, line, strict=True)
    )
    return (column, row) if near else None


def _run_gpu(x: Tensor, f: Tensor, s: Settings, out_size: tuple[int, int]) -> Tensor:
    x = x if _channels_last(x) else x.contiguous()
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    f = f.to(wide).contiguous()
    by_two = (s.up, s.down) in (((1, 1), (1, 1)), ((1, 1), (2, 2))) or (
        (s.up, s.down) == ((2, 2), (1, 1)) and s.sides[0] % 2 == 0 and s.sides[2] % 2 == 0
    )
    if by_two and f.shape in ((4,), (4, 4)) and x.dtype != torch.float64:
        y, x = _empty(x, out_size, x.dtype), aligned(x)
        axes = _axes(x, out_size, s, 4, 4)
        sizes = x.shape[0], x.shape[1], int(_channels_last(x))
        pointers = address(y), address(x), address(f)
        is_1d, reverse = int(f.ndim == 1), int(not s.flip)
        call("ops_upfirdn2d_small", x, DTYPES.index(x.dtype), *pointers, is_1d, *sizes, axes, reverse, s.gain)
        return y
    if f.ndim == 2:
        return _run_gpu_once(x, f, s, out_size, x.dtype)
    # One axis, then the other; in between in the precision of the computation, so that it is rounded once.
    down_columns = Settings((1, s.up[1]), (1, s.down[1]), (0, 0, *s.sides[2:]), s.flip, s.gain)
    along_rows = Settings((s.up[0], 1), (s.down[0], 1), (*s.sides[:2], 0, 0), s.flip, 1.0)
    between = _run_gpu_once(x, f[:, None], down_columns, (out_size[0], x.shape[3]), wide)
    return _run_gpu_once(between, f[None, :], along_rows, out_size, x.dtype)


def _run_gpu_once(x: Tensor, f: Tensor, s: Settings, out_size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    y = _empty(x, out_size, dtype)
    axes = _axes(x, out_size, s, *f.shape)
    dtypes = DTYPES.index(x.dtype), DTYPES.index(dtype)
    sizes = x.shape[0], x.shape[1], int(_channels_last(x))
    call("ops_upfirdn2d", x, *dtypes, address(y), address(x), address(f), *sizes, axes, int(not s.flip), s.gain)
    return y


def _empty(x: Tensor, out_size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A result [N, C, *out_size] in the layout of x."""
    layout = torch.channels_last if _channels_last(x) else torch.contiguous_format
    return torch.empty((*x.shape[:2], *out_size), dtype=dtype, device=x.device, memory_format=layout)


def _axes(x: Tensor, out_size: tuple[int, int], s: Settings, taps_y: int, taps_x: int) -> Any:
    """The array that both kernels take, see ops_upfirdn2d_cpu."""
    sizes = (*x.shape[2:], *out_size, *s.up[::-1], *s.down[::-1], s.sides[2], s.sides[0], taps_y, taps_x)
    return (ctypes.c_int64 * len(sizes))(*sizes)
