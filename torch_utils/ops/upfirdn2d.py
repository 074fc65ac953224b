"""Pad, upsample, filter and downsample a batch of images in one call.

Along each axis `upfirdn2d` inserts up - 1 zeros after every sample, pads (a negative padding crops), convolves with the
filter where it lies wholly inside, and keeps every down-th sample. The reference never builds the zeros: a stride of a
depthwise convolution does the downsampling, a stride of a transposed one the upsampling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils.ops.native import check_floating, wanted
from torch_utils.ops.upfirdn2d_native import Settings, Sides, upfirdn2d_native


def parse_scaling(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """A factor, or one each for [x, y] -> (x, y), each >= 1."""
    pair = list(value) if isinstance(value, Sequence) else [value, value]
    if len(pair) != 2 or not all(isinstance(factor, int) and factor >= 1 for factor in pair):
        raise ValueError(f"{name}: {value!r} is not an integer >= 1 or a pair [x, y] of them.")
    return pair[0], pair[1]


def parse_padding(padding: int | Sequence[int]) -> Sides:
    """A padding for all sides, for [x, y] or for [x_before, x_after, y_before, y_after] -> the latter."""
    sides = list(padding) if isinstance(padding, Sequence) else [padding] * 4
    if len(sides) == 2:
        sides = [sides[0], sides[0], sides[1], sides[1]]
    if len(sides) != 4 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"padding: {padding!r} is not an integer, [x, y] or [x_before, x_after, y_before, y_after].")
    return sides[0], sides[1], sides[2], sides[3]


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """Taps of a filter as (width, height); (1, 1) for None.

    Raises:
        ValueError: not a floating-point tensor with one or two axes and at least one tap.
    """
    if f is None:
        return 1, 1
    check_floating("f", f)
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"f: expected a filter of shape [taps] (separable) or [height, width], got {list(f.shape)}.")
    return f.shape[-1], f.shape[0]


def setup_filter(
    f: Tensor | Sequence[float] | Sequence[Sequence[float]] | float | None,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Make a filter for the functions below.

    Args:
        f: taps [taps] of a separable filter, taps [height, width], a scalar, or None for the identity.
        device: where the filter is to live.
        normalize: scale the taps to the sum 1, so that a constant image keeps its value.
        flip_filter: reverse the taps.
        gain: factor of the image's magnitude.
        separable: keep [taps] as it is and filter along x and y in turn, or make it [taps, taps] and filter once.
            None: keep 8 taps and more, where two passes cost less than one.

    Returns:
        float32 [taps] or [height, width].

    Raises:
        ValueError: f is of another shape, normalize with taps whose sum is 0, or separable with [height, width].
    """
    taps = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32)
    taps = taps.reshape(1) if taps.ndim == 0 else taps
    filter_size(taps)
    if separable and taps.ndim == 2:
        raise ValueError(f"separable: f {list(taps.shape)} has two axes; give the taps of one, or separable=False.")
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        total = taps.sum()
        if total == 0:
            raise ValueError("normalize: the taps of f sum to 0; give normalize=False.")
        taps = taps / total
    if flip_filter:
        taps = taps.flip(tuple(range(taps.ndim)))
    scale: float = gain ** (taps.ndim / 2)
    return (taps * scale).to(device)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> Tensor:
    """Upsample with zeros, pad, filter, downsample; twice differentiable.

    Args:
        x: [N, C, H, W], floating point, any strides.
        f: taps [taps] for both axes or [height, width], or None for the identity; `setup_filter` makes one.
        up: factor, or [x, y].
        down: factor, or [x, y].
        padding: samples of the upsampled image, negative to crop: all sides, [x, y] or
            [x_before, x_after, y_before, y_after].
        flip_filter: False convolves, True correlates (as torch's convolutions do).
        gain: factor of the result.
        impl: 'auto', 'native' or 'ref', see `torch_utils.custom_ops.set_mode`.

    Returns:
        [N, C, H', W'] in x's dtype, H' = (H * up + before + after - height) // down + 1, and W' likewise.

    Raises:
        ValueError: an argument is not one of the above, or the padded image is smaller than the filter.
    """
    check_floating("x", x)
    if x.ndim != 4:
        raise ValueError(f"x: expected images [N, C, H, W], got {list(x.shape)}.")
    (up_x, up_y), (down_x, down_y) = parse_scaling("up", up), parse_scaling("down", down)
    x0, x1, y0, y1 = parse_padding(padding)
    width, height = filter_size(f)
    if f is not None and f.device != x.device:
        raise ValueError(f"f: is on {f.device}, x is on {x.device}; move the filter once with f.to(x.device).")
    padded_width, padded_height = x.shape[3] * up_x + x0 + x1, x.shape[2] * up_y + y0 + y1
    if padded_width < width or padded_height < height:
        raise ValueError(
            f"padding: {padding!r} makes x {list(x.shape)} {padded_height} high and {padded_width} wide, "
            f"smaller than the filter's {height} x {width} taps."
        )

    if wanted(impl, x, [f]) and x.numel() > 0:
        settings = Settings((up_x, up_y), (down_x, down_y), (x0, x1, y0, y1), flip_filter, float(gain))
        return upfirdn2d_native(x, f, settings)

    # On the CPU torch has no fast depthwise convolution in half precision: compute in float32 and round once.
    work = torch.float32 if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    taps = torch.ones([1, 1], dtype=work, device=x.device) if f is None else f.to(work)
    taps = taps * gain if taps.ndim == 2 else taps
    taps = taps if flip_filter else taps.flip(tuple(range(taps.ndim)))
    if taps.ndim == 1 and taps.numel() < 8:  # one pass over the image costs less than two
        taps = torch.outer(taps, taps) * gain

    if taps.ndim == 2:
        y = _correlate(x.to(work), taps, (up_x, up_y), (down_x, down_y), (x0, x1, y0, y1))
    else:
        y = _correlate(x.to(work), taps[:, None] * gain, (1, up_y), (1, down_y), (0, 0, y0, y1))
        y = _correlate(y, taps[None, :], (up_x, 1), (down_x, 1), (x0, x1, 0, 0))
    return y.to(x.dtype)


def _correlate(x: Tensor, taps: Tensor, up: tuple[int, int], down: tuple[int, int], padding: Sides) -> Tensor:
    """The operation with factors (x, y), for taps [height, width] in correlation order."""
    (height, width), channels = taps.shape, x.shape[1]
    x0, x1, y0, y1 = padding
    if up == (1, 1):
        x, common = pad_for_convolution(x, padding)
        weight = taps.expand(channels, 1, height, width)
        return functional.conv2d(x, weight, stride=down[::-1], padding=common, groups=channels)

    # A transposed convolution gives every sample that the filter touches, (N - 1) * up + taps of them. Before the
    # first and after the last one wanted it gives these too many, or too few where negative:
    crop_x0, crop_x1 = width - 1 - x0, width - up[0] - x1
    crop_y0, crop_y1 = height - 1 - y0, height - up[1] - y1
    common_x, common_y = max(min(crop_x0, crop_x1), 0), max(min(crop_y0, crop_y1), 0)
    weight = taps.flip(0, 1).expand(channels, 1, height, width)
    y = functional.conv_transpose2d(x, weight, stride=up[::-1], padding=(common_y, common_x), groups=channels)
    y = pad2d(y, (common_x - crop_x0, common_x - crop_x1, common_y - crop_y0, common_y - crop_y1))
    return y if down == (1, 1) else y[:, :, :: down[1], :: down[0]]


def pad2d(x: Tensor, padding: Sides) -> Tensor:
    """Pad with zeros, then crop where negative: a crop may exceed the image on one side as long as samples remain."""
    if any(side > 0 for side in padding):
        x = functional.pad(x, [max(side, 0) for side in padding])
    if any(side < 0 for side in padding):
        x0, x1, y0, y1 = (max(-side, 0) for side in padding)
        x = x[:, :, y0 : x.shape[2] - y1, x0 : x.shape[3] - x1]
    return x


def pad_for_convolution(x: Tensor, padding: Sides) -> tuple[Tensor, tuple[int, int]]:
    """Pad all but what the two sides of an axis share: torch's convolutions pad by that (y, x) without a copy of x."""
    x0, x1, y0, y1 = padding
    common_y, common_x = max(min(y0, y1), 0), max(min(x0, x1), 0)
    return pad2d(x, (x0 - common_x, x1 - common_x, y0 - common_y, y1 - common_y)), (common_y, common_x)


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> Tensor:
    """Filter, keeping the size of the image; `padding` (as in `upfirdn2d`) is added to what that takes."""
    (x0, x1, y0, y1), (width, height) = parse_padding(padding), filter_size(f)
    sides = [x0 + width // 2, x1 + (width - 1) // 2, y0 + height // 2, y1 + (height - 1) // 2]
    return upfirdn2d(x, f, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample_padding(f: Tensor | None, up: tuple[int, int]) -> Sides:
    """Padding for `upfirdn2d` that makes the result `up` (x, y) times as large, its centre in place."""
    width, height = filter_size(f)
    return (width + up[0] - 1) // 2, (width - up[0]) // 2, (height + up[1] - 1) // 2, (height - up[1]) // 2


def downsample_padding(f: Tensor | None, down: tuple[int, int]) -> Sides:
    """Padding for `upfirdn2d` that makes the result 1 / `down` (x, y) times as large, its centre in place."""
    width, height = filter_size(f)
    return (width - down[0] + 1) // 2, (width - down[0]) // 2, (height - down[1] + 1) // 2, (height - down[1]) // 2


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> Tensor:
    """Make an image `up` times as large; a constant one keeps its value under a filter of sum 1.

    `padding` (as in `upfirdn2d`, samples of the result) is added to what that takes.
    """
    up_x, up_y = parse_scaling("up", up)
    sides = [a + b for a, b in zip(parse_padding(padding), upsample_padding(f, (up_x, up_y)), strict=True)]
    return upfirdn2d(x, f, up=up, padding=sides, flip_filter=flip_filter, gain=gain * up_x * up_y, impl=impl)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> Tensor:
    """Make an image 1 / `down` times as large; `padding` (as in `upfirdn2d`) is added to what that takes."""
    own = downsample_padding(f, parse_scaling("down", down))
    sides = [a + b for a, b in zip(parse_padding(padding), own, strict=True)]
    return upfirdn2d(x, f, down=down, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)
