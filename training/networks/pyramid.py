"""What the generator and the discriminator of StyleGAN2 share: resolutions, channels, and what is computed in."""

from collections.abc import Mapping
from typing import Any

import torch

Kwargs = Mapping[str, Any]  # arguments by name for the constructor they reach; an unknown name is a TypeError there
ARCHITECTURES = ("orig", "skip", "resnet")  # StyleGAN2, figure 7


def block_resolutions(img_resolution: int) -> list[int]:
    """[4, 8, ..., img_resolution]"""
    if img_resolution < 8 or img_resolution & (img_resolution - 1):
        raise ValueError(f"img_resolution: {img_resolution} is not a power of two >= 8.")
    return [2**power for power in range(2, img_resolution.bit_length())]


def num_channels(resolution: int, channel_base: int, channel_max: int) -> int:
    """Channels of the features at a resolution."""
    channels = min(channel_base // resolution, channel_max)
    if channels < 1:
        raise ValueError(
            f"channel_base: {channel_base} // {resolution} and channel_max: {channel_max} leave no channels at "
            f"{resolution} x {resolution}."
        )
    return channels


def compute_dtype(network: torch.nn.Module, resolution: int, device: torch.device, force_fp32: bool) -> torch.dtype:
    """The type that the block of a resolution computes in: low precision is for the highest ones, from 8 on.

    float16 is for CUDA only. Attributes of the network decide, so that they can be changed after it was made.
    """
    is_low = resolution >= max(2 * network.img_resolution >> network.num_fp16_res, 8)
    is_there = network.low_dtype != torch.float16 or device.type == "cuda"
    return network.low_dtype if is_low and is_there and not force_fp32 else torch.float32


def check_architecture(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: {architecture!r} is not one of {', '.join(ARCHITECTURES)}.")
