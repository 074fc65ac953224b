"""From 8-bit images to what a pretrained network expects to see, on the network's own device."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F

INTERPOLATIONS = ("bilinear", "bicubic")  # what torch can do with antialiasing, and all that timm's models ask for


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop at the centre, subtract a mean, divide by a deviation.

    It works on batches of tensors. The resize is torch's, antialiased, in float32 and clamped to [0, 1]; Pillow's, with
    which most weights were trained, uses the same kernels and differs by its rounding to 8 bits after each pass.

    Args:
        size: height and width the network sees, in pixels.
        scaled: height and width before the crop.
        fit: how an image that has another aspect than `scaled` is brought to it: "squash" (exactly to it), "center"
            (it covers `scaled`), "border" (it lies within, with borders of the mean colour).
        interpolation: of `INTERPOLATIONS`.
        mean, std: of each channel, on a scale from 0 to 1.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    fit: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_timm(cls, config: dict[str, Any]) -> Self:
        """From the data configuration of a timm model: input_size, crop_pct, crop_mode, interpolation, mean, std.

        Raises:
            ValueError: an interpolation or a crop that is not known here.
        """
        height, width = config["input_size"][1:]
        scaled = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
        fit, interpolation = config["crop_mode"], config["interpolation"]
        if fit not in ("squash", "center", "border") or interpolation not in INTERPOLATIONS:
            raise ValueError(f"it wants a {interpolation} resize and a {fit} crop, which are not known here")
        return cls((height, width), scaled, fit, interpolation, tuple(config["mean"]), tuple(config["std"]))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})

    def json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, C, H, W] -> float32 [N, C, *size], on the device of `images`."""
        x = images.float() / 255
        target = self._target(*x.shape[2:])
        if tuple(x.shape[2:]) != target:
            x = F.interpolate(x, size=target, mode=self.interpolation, antialias=True, align_corners=False)
            x = x.clamp(0, 1)  # bicubic overshoots at edges
        mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        x = (x - mean) / std
        (height, width), (rows, columns) = x.shape[2:], self.size
        lacks = max(rows - height, 0), max(columns - width, 0)
        if any(lacks):  # zero is the mean colour
            x = F.pad(x, (lacks[1] // 2, (lacks[1] + 1) // 2, lacks[0] // 2, (lacks[0] + 1) // 2))
        top, left = round(max(height - rows, 0) / 2), round(max(width - columns, 0) / 2)
        return x[:, :, top : top + rows, left : left + columns]

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to resize to, before the crop."""
        if self.fit == "squash":
            return self.scaled
        if self.fit == "center" and self.scaled[0] == self.scaled[1]:  # the long side is cut down, not rounded
            side, short = self.scaled[0], min(height, width)
            return side * height // short, side * width // short
        ratios = height / self.scaled[0], width / self.scaled[1]
        ratio = min(ratios) if self.fit == "center" else max(ratios)
        return round(height / ratio), round(width / ratio)
