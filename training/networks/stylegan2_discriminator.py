"""The discriminator of StyleGAN2-ADA, conditioned on nothing or on class labels.

StyleGAN2: Karras et al., arXiv 1912.04958. StyleGAN2-ADA: arXiv 2006.06676. Parameters and buffers have the names and
shapes of the published checkpoints.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops.upfirdn2d import downsample2d, setup_filter
from torch_utils.precision import conv_format
from training.networks.inputs import check_image, check_input
from training.networks.layers import (
    Conv2dLayer,
    FullyConnectedLayer,
    MinibatchStdLayer,
)
from training.networks.mapping import MappingNetwork
from training.networks.pyramid import Kwargs, block_resolutions, check_architecture, compute_dtype, num_channels


class DiscriminatorBlock(torch.nn.Module):
    """One resolution of the discriminator, halving it (StyleGAN2, figure 7)."""

    def __init__(
        self,
        in_channels: int,  # 0: the first block, which starts from the image
        tmp_channels: int,
        out_channels: int,
        img_channels: int,
        first_layer: int,  # layers between the image and this block
        architecture: str,
        conv_clamp: float | None,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        freeze_layers: int = 0,  # layers from the image on that are not to be trained (Freeze-D, arXiv 2002.10964)
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.num_layers = 0

        def layer(channels_in: int, channels_out: int, kernel_size: int, **options: Any) -> Conv2dLayer:
            trainable = first_layer + self.num_layers >= freeze_layers
            self.num_layers += 1
            return Conv2dLayer(
                channels_in, channels_out, kernel_size, resample_filter=resample_filter, trainable=trainable, **options
            )

        active = {"activation": activation, "conv_clamp": conv_clamp}
        self.fromrgb = None
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = layer(img_channels, tmp_channels, 1, **active)
        self.conv0 = layer(tmp_channels, tmp_channels, 3, **active)
        self.conv1 = layer(tmp_channels, out_channels, 3, down=2, **active)
        self.skip = None
        if architecture == "resnet":
            self.skip = layer(tmp_channels, out_channels, 1, bias=False, down=2)

    def forward(
        self,
        x: Tensor | None,  # [N, in_channels, R, R]
        img: Tensor | None,  # [N, img_channels, R, R]
        dtype: torch.dtype,  # of all but img
    ) -> tuple[Tensor, Tensor | None]:
        x = None if x is None else x.to(dtype, memory_format=conv_format(x, dtype))
        if self.fromrgb is not None:
            y = self.fromrgb(img.to(dtype, memory_format=conv_format(img, dtype)))  # [N, tmp_channels, R, R]
            x = y if x is None else x + y
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None

        if self.skip is not None:
            y = self.skip(x, gain=math.sqrt(0.5))  # [N, out_channels, R / 2, R / 2]
            x = self.conv0(x)  # [N, tmp_channels, R, R]
            x = y + self.conv1(x, gain=math.sqrt(0.5))  # [N, out_channels, R / 2, R / 2]
        else:
            x = self.conv0(x)  # [N, tmp_channels, R, R]
            x = self.conv1(x)  # [N, out_channels, R / 2, R / 2]
        return x, img


class DiscriminatorEpilogue(torch.nn.Module):
    """The 4x4 features -> one logit, or a vector to be compared with the mapped condition."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,  # width of the mapped condition; 0: none
        img_channels: int,
        architecture: str,
        conv_clamp: float | None,
        mbstd_group_size: int | None = 4,  # None: the whole batch
        mbstd_num_channels: int = 1,  # 0: no minibatch standard deviation
        activation: str = "lrelu",
    ) -> None:
        super().__init__()
        if mbstd_num_channels < 0 or (mbstd_num_channels > 0 and in_channels % mbstd_num_channels):
            raise ValueError(f"mbstd_num_channels: {mbstd_num_channels} does not divide the {in_channels} channels.")
        if mbstd_group_size is not None and mbstd_group_size < 1:
            raise ValueError(f"mbstd_group_size: {mbstd_group_size} is not >= 1 or None for the whole batch.")
        self.cmap_dim = cmap_dim
        self.fromrgb = None
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, kernel_size=1, activation=activation)
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels > 0 else None
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels, in_channels, kernel_size=3, activation=activation, conv_clamp=conv_clamp
        )
        self.fc = FullyConnectedLayer(in_channels * 4**2, in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim if cmap_dim > 0 else 1)

    def features(self, x: Tensor, img: Tensor | None, alone: bool = False) -> Tensor:
        """What the logit is made of, [N, in_channels]; `alone`: without looking at the other images of the batch."""
        x = x.float()  # [N, in_channels, 4, 4]
        if self.fromrgb is not None:
            x = x + self.fromrgb(img)  # [N, in_channels, 4, 4]
        if self.mbstd is not None and alone:
            x = F.pad(x, (0, 0, 0, 0, 0, self.mbstd.num_channels))  # one image deviates from itself by 0
        elif self.mbstd is not None:
            x = self.mbstd(x)  # [N, in_channels + mbstd_num_channels, 4, 4]
        x = self.conv(x)  # [N, in_channels, 4, 4]
        return self.fc(x.flatten(1))

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None) -> Tensor:
        x = self.out(self.features(x, img))  # [N, cmap_dim or 1]
        if cmap is not None:
            # Projection discriminator (Miyato and Koyama, arXiv 1802.05637, section 3), its inner product alone; over
            # sqrt(width), so that the logit does not grow with the width.
            x = (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)  # [N, 1]
        return x


class Discriminator(torch.nn.Module):
    """Images and the condition -> logits."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,  # a power of two >= 8
        img_channels: int,
        architecture: str = "resnet",  # orig, skip or resnet
        channel_base: int = 32768,  # channels times resolution, as far as channel_max allows
        channel_max: int = 512,
        num_fp16_res: int = 0,  # highest resolutions that run in low_dtype
        conv_clamp: float | None = None,  # bound of every convolution; 256 with float16, which overflows above 65504
        cmap_dim: int | None = None,  # width of the mapped condition; None: the channels at 4x4
        mapping_kwargs: Kwargs | None = None,  # for the mapping network: num_layers, ...
        block_kwargs: Kwargs | None = None,  # for DiscriminatorBlock: activation, resample_filter, freeze_layers
        epilogue_kwargs: Kwargs | None = None,  # for DiscriminatorEpilogue: mbstd_group_size, ...
        mapping_network: Callable[..., MappingNetwork] | None = None,  # None: MappingNetwork where there are labels
        low_dtype: torch.dtype = torch.float16,  # or bfloat16; float16 counts on CUDA alone
    ) -> None:
        super().__init__()
        self.num_fp16_res, self.low_dtype = num_fp16_res, low_dtype
        self.resolutions = block_resolutions(img_resolution)[:0:-1]  # highest first, without 4
        check_architecture(architecture)
        if mapping_network is None and c_dim > 0:
            mapping_network = MappingNetwork
        cmap_dim = num_channels(4, channel_base, channel_max) if cmap_dim is None else cmap_dim
        if mapping_network is not None and cmap_dim < 1:
            raise ValueError(f"cmap_dim: {cmap_dim} is no width for the mapped condition; expected >= 1, or None.")

        in_channels = num_layers = 0
        for resolution in self.resolutions:
            tmp_channels = num_channels(resolution, channel_base, channel_max)
            block = DiscriminatorBlock(
                in_channels,
                tmp_channels,
                num_channels(resolution // 2, channel_base, channel_max),
                img_channels,
                num_layers,
                architecture,
                conv_clamp,
                **(block_kwargs or {}),
            )
            setattr(self, f"b{resolution}", block)
            in_channels = tmp_channels
            num_layers += block.num_layers
        self.b4 = DiscriminatorEpilogue(
            num_channels(4, channel_base, channel_max),
            0 if mapping_network is None else cmap_dim,
            img_channels,
            architecture,
            conv_clamp,
            **(epilogue_kwargs or {}),
        )
        self.mapping = None
        if mapping_network is not None:
            self.mapping = mapping_network(z_dim=0, c_dim=c_dim, w_dim=cmap_dim, num_ws=None, **(mapping_kwargs or {}))
        else:
            inspect.signature(MappingNetwork).bind_partial(**(mapping_kwargs or {}))  # unused, yet no unknown name
        self.c_dim, self.h_dim = c_dim, 0 if self.mapping is None else self.mapping.h_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels

    def forward(
        self, img: Tensor, c: Tensor | None = None, h: Tensor | None = None, *, force_fp32: bool = False
    ) -> Tensor:
        """
        Args:
            img: [N, img_channels, img_resolution, img_resolution], floating point, about [-1, 1].
            c: labels [N, c_dim]; None or [N, 0] if c_dim is 0.
            h: instance features [N, h_dim]; None or [N, 0] if h_dim is 0.
            force_fp32: no low precision.

        Returns:
            logits, float32 [N, 1].

        Raises:
            ValueError: an input is missing or of another shape.
        """
        check_image(img, self.img_channels, self.img_resolution)
        check_input("c", c, self.c_dim, len(img))
        check_input("h", h, self.h_dim, len(img))

        x, img = self._trunk(img, force_fp32)
        cmap = None if self.mapping is None else self.mapping(None, c, h)  # [N, cmap_dim]
        return self.b4(x, img, cmap)

    def features(self, img: Tensor) -> Tensor:
        """What the logits of images are made of, each for itself: float32 [N, channels at 4x4]."""
        return self.b4.features(*self._trunk(img, force_fp32=False), alone=True)

    def _trunk(self, img: Tensor, force_fp32: bool) -> tuple[Tensor, Tensor | None]:
        """Features [N, channels, 4, 4], and the image at 4x4 where the architecture is `skip`."""
        x, device = None, img.device
        for resolution in self.resolutions:
            dtype = compute_dtype(self, resolution, device, force_fp32)
            x, img = getattr(self, f"b{resolution}")(x, img, dtype)  # [N, channels, R / 2, R / 2]
        return x, img
