"""What every generator and discriminator asks of its inputs, at its door and nowhere else."""

from torch import Tensor

NOISE_MODES = ("random", "const", "none")
WHAT = {"z": "noise", "c": "class labels", "h": "instance features"}


def check_input(name: str, value: Tensor | None, width: int, num: int | None) -> None:
    """Refuse a z, c or h that is not [num, width]; with width 0 None will do. num None: any number."""
    if value is None and width > 0:
        raise ValueError(f"{name}: this network takes {WHAT[name]}, [N, {width}]; none given.")
    if value is not None and (value.ndim != 2 or value.shape[1] != width or num not in (None, len(value))):
        rows = "N" if num is None else num
        unless = f", or None: this network takes no {WHAT[name]}" if width == 0 else ""
        raise ValueError(f"{name}: expected {WHAT[name]} [{rows}, {width}]{unless}; got {list(value.shape)}.")


def check_image(img: Tensor, channels: int, resolution: int) -> None:
    """Refuse an image that is not floating-point [N, channels, resolution, resolution]."""
    expected = (channels, resolution, resolution)
    if img.shape[1:] != expected or not img.is_floating_point():
        raise ValueError(
            f"img: expected floating-point [N, {', '.join(map(str, expected))}] about [-1, 1], "
            f"got {img.dtype} {list(img.shape)}."
        )
