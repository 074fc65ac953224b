"""2-D convolution with filtered up- or downsampling of the image."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from torch_utils.ops.conv3x3_native import conv3x3, fits
from torch_utils.ops.native import check_floating
from torch_utils.ops.upfirdn2d import (
    downsample_padding,
    filter_size,
    pad_for_convolution,
    parse_padding,
    upfirdn2d,
    upsample_padding,
)
from torch_utils.ops.upfirdn2d_native import Sides


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Upsample x by `up`, convolve with w, downsample by `down`; f smooths both changes of size.

    The same as `upfirdn2d` with `up`, torch's conv2d and `upfirdn2d` with `down` in turn, all padding done in the
    first of them, but computed in the order that costs least.

    Args:
        x: [N, in_channels, H, W], floating point, any strides.
        w: [out_channels, in_channels / groups, height, width] in x's dtype.
        f: filter as for `upfirdn2d`, or None for none.
        up: factor >= 1.
        down: factor >= 1.
        padding: samples of the upsampled image, as for `upfirdn2d`; what f takes to keep the centre in place is added.
        groups: groups of channels, as in torch's conv2d.
        flip_weight: True correlates, as torch's conv2d does; False convolves.
        flip_filter: as for `upfirdn2d`.

    Returns:
        [N, out_channels, H', W'] in x's dtype; H' = H * up / down for an odd square w with padding = height // 2.

    Raises:
        ValueError: an argument is not one of the above, or the padded image is smaller than w and f.
    """
    check_floating("x", x)
    if x.ndim != 4:
        raise ValueError(f"x: expected images [N, C, H, W], got {list(x.shape)}.")
    if w.ndim != 4 or w.dtype != x.dtype or w.numel() == 0:
        raise ValueError(
            f"w: expected weights [out, in / groups, height, width] of x's {x.dtype}, got {list(w.shape)} of {w.dtype}."
        )
    if groups < 1 or w.shape[0] % groups or w.shape[1] * groups != x.shape[1]:
        raise ValueError(f"groups: {groups} does not fit x {list(x.shape)} and w {list(w.shape)}.")
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"{name}: {factor!r} is not an integer >= 1.")
    height, width = w.shape[2:]
    filter_width, filter_height = filter_size(f)

    # Padding of the upsampled image, with what the filter takes to keep the centre in place.
    sides = parse_padding(padding)
    if up > 1:
        sides = _add(sides, upsample_padding(f, (up, up)))
    if down > 1:
        sides = _add(sides, downsample_padding(f, (down, down)))
    times_filtered = (up > 1) + (down > 1)
    spare_width = x.shape[3] * up + sides[0] + sides[1] - width - times_filtered * (filter_width - 1)
    spare_height = x.shape[2] * up + sides[2] + sides[3] - height - times_filtered * (filter_height - 1)
    if spare_width < 0 or spare_height < 0:
        raise ValueError(
            f"padding: {padding!r} leaves nothing of x {list(x.shape)} for w {list(w.shape)} and "
            f"{filter_height} x {filter_width} filter taps."
        )

    # A transposed convolution upsamples and convolves at once, as if padded by all that the weights can touch.
    # It takes them in the order of a convolution, [in, out / groups, height, width].
    pointwise = (height, width) == (1, 1)
    if up > 1 and (down > 1 or not pointwise):
        weight = w.flip(2, 3) if flip_weight else w
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        y = functional.conv_transpose2d(x, weight, stride=up, groups=groups)
        sides = _add(sides, (1 - width, up - width, 1 - height, up - height))
        y = upfirdn2d(y, f, 1, 1, sides, flip_filter, gain=up * up)
        return y if down == 1 else upfirdn2d(y, f, 1, down, 0, flip_filter)

    # 1x1 weights commute with the filter: convolve the smaller of the two images.
    if up > 1:
        return upfirdn2d(functional.conv2d(x, w, groups=groups), f, up, 1, sides, flip_filter, gain=up * up)
    if down > 1 and pointwise:
        return functional.conv2d(upfirdn2d(x, f, 1, down, sides, flip_filter), w, groups=groups)

    # Filter at the full size, then convolve with a stride.
    if down > 1 and f is not None:
        x, sides = upfirdn2d(x, f, 1, 1, sides, flip_filter), (0, 0, 0, 0)
    x, common = pad_for_convolution(x, sides)
    if down == 1 and groups == 1 and common == (1, 1) and fits(x, w):
        return conv3x3(x, w, flip=not flip_weight)
    weight = w if flip_weight else w.flip(2, 3)  # in the order of a correlation
    return functional.conv2d(x, weight, stride=down, padding=common, groups=groups)


def _add(a: Sides, b: Sides) -> Sides:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]
