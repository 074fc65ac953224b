"""The generator of StyleGAN2-ADA, conditioned on nothing or on class labels.

StyleGAN: Karras et al., arXiv 1812.04948. StyleGAN2: arXiv 1912.04958. StyleGAN2-ADA: arXiv 2006.06676. Parameters and
buffers have the names and shapes of the published checkpoints.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_utils.ops.bias_act import activations, bias_act
from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from torch_utils.precision import conv_format
from training.networks.inputs import NOISE_MODES
from training.networks.layers import (
    Conv2dLayer,
    FullyConnectedLayer,
    modulated_conv2d,
    require_activation,
)
from training.networks.mapping import MappingNetwork
from training.networks.pyramid import Kwargs, block_resolutions, check_architecture, compute_dtype, num_channels


class SynthesisLayer(torch.nn.Module):
    """Modulated convolution, noise, bias and activation (StyleGAN2, figure 2d)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,  # of the result
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.resolution, self.up, self.use_noise = resolution, up, use_noise
        self.activation, self.conv_clamp = require_activation(activation), conv_clamp
        self.act_gain = activations[activation].default_gain
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = torch.nn.Parameter(torch.zeros(()))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor, noise_mode: str, fused_modconv: bool, gain: float = 1) -> Tensor:
        noise = None
        if self.use_noise and noise_mode == "random":
            shape = [len(x), 1, self.resolution, self.resolution]
            noise = torch.randn(shape, device=x.device) * self.noise_strength
        elif self.use_noise and noise_mode == "const":
            noise = (self.noise_const * self.noise_strength).reshape(-1, 1, self.resolution, self.resolution)

        # Demodulation takes the scale of the weights out, so they need no 1 / sqrt(fan_in).
        x = modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            noise,
            up=self.up,
            padding=1,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,  # published parameters of upsampling layers are stored the other way round
            fused=fused_modconv,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, self.bias.to(x.dtype), act=self.activation, gain=self.act_gain * gain, clamp=clamp)


class ToRGBLayer(torch.nn.Module):
    """Modulated 1x1 convolution to the image's channels, without demodulation (StyleGAN2, figure 7)."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, conv_clamp: float | None = None) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool) -> Tensor:
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(x, self.weight, styles, demodulate=False, fused=fused_modconv)
        return bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


class SynthesisBlock(torch.nn.Module):
    """One resolution of the generator: one or two layers and what leads to the image (StyleGAN2, figure 7)."""

    def __init__(
        self,
        in_channels: int,  # 0: the first block, which starts from a learned constant
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str,
        use_noise: bool,
        activation: str,
        resample_filter: Sequence[float],
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.in_channels, self.architecture = in_channels, architecture
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        common = {
            "w_dim": w_dim,
            "resolution": resolution,
            "use_noise": use_noise,
            "activation": activation,
            "resample_filter": resample_filter,
            "conv_clamp": conv_clamp,
        }
        if in_channels == 0:
            self.const = torch.nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, up=2, **common)
        self.conv1 = SynthesisLayer(out_channels, out_channels, **common)
        self.num_conv = 1 if in_channels == 0 else 2
        self.torgb = None
        if is_last or architecture == "skip":
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp)
        self.skip = None
        if in_channels > 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels, out_channels, kernel_size=1, bias=False, up=2, resample_filter=resample_filter
            )

    def forward(
        self,
        x: Tensor | None,  # [N, in_channels, R / 2, R / 2]
        img: Tensor | None,  # [N, img_channels, R / 2, R / 2]
        ws: Tensor,  # [N, num_conv (+ 1), w_dim], the last for the image
        noise_mode: str,
        fused_modconv: bool,
        dtype: torch.dtype,  # of all but img
    ) -> tuple[Tensor, Tensor | None]:
        w = iter(ws.unbind(dim=1))
        modes = {"noise_mode": noise_mode, "fused_modconv": fused_modconv}
        x = self.const.expand(len(ws), -1, -1, -1) if x is None else x
        x = x.to(dtype, memory_format=conv_format(x, dtype))

        if self.in_channels == 0:
            x = self.conv1(x, next(w), **modes)  # [N, out_channels, R, R]
        elif self.skip is not None:
            y = self.skip(x, gain=math.sqrt(0.5))  # [N, out_channels, R, R]
            x = self.conv0(x, next(w), **modes)  # [N, out_channels, R, R]
            x = y + self.conv1(x, next(w), gain=math.sqrt(0.5), **modes)
        else:
            x = self.conv0(x, next(w), **modes)  # [N, out_channels, R, R]
            x = self.conv1(x, next(w), **modes)

        if img is not None:
            img = upsample2d(img, self.resample_filter)  # [N, img_channels, R, R]
        if self.torgb is not None:
            y = self.torgb(x, next(w), fused_modconv).float()
            img = y if img is None else img + y
        return x, img


class SynthesisNetwork(torch.nn.Module):
    """ws -> images."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,  # channels times resolution, as far as channel_max allows
        channel_max: int = 512,
        num_fp16_res: int = 0,  # highest resolutions that run in low_dtype
        conv_clamp: float | None = None,  # bound of every convolution; 256 with float16, which overflows above 65504
        architecture: str = "skip",  # orig, skip or resnet
        use_noise: bool = True,
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        activation: str = "lrelu",
        fused_modconv: bool | None = None,  # how to convolve unless forward is told; None: see forward
        low_dtype: torch.dtype = torch.float16,  # or bfloat16; float16 counts on CUDA alone
    ) -> None:
        super().__init__()
        resolutions = block_resolutions(img_resolution)
        check_architecture(architecture)
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.resolutions, self.fused_modconv = resolutions, fused_modconv
        self.num_fp16_res, self.low_dtype = num_fp16_res, low_dtype
        self.num_ws = 0
        in_channels = 0
        for resolution in resolutions:
            out_channels = num_channels(resolution, channel_base, channel_max)
            block = SynthesisBlock(
                in_channels,
                out_channels,
                w_dim,
                resolution,
                img_channels,
                is_last=resolution == img_resolution,
                architecture=architecture,
                use_noise=use_noise,
                activation=activation,
                resample_filter=resample_filter,
                conv_clamp=conv_clamp,
            )
            setattr(self, f"b{resolution}", block)
            self.num_ws += block.num_conv
            in_channels = out_channels
        self.num_ws += 1  # the last block's image

    def forward(
        self, ws: Tensor, *, noise_mode: str = "random", force_fp32: bool = False, fused_modconv: bool | None = None
    ) -> Tensor:
        """
        Args:
            ws: [N, num_ws, w_dim].
            noise_mode: 'random' draws noise, 'const' takes the stored one, 'none' adds none.
            force_fp32: no low precision.
            fused_modconv: spell out the modulated weights of every image. None: as constructed, else on CUDA when
                not training.

        Returns:
            float32 [N, img_channels, img_resolution, img_resolution], about [-1, 1].

        Raises:
            ValueError: ws is of another shape, or there is no such noise mode.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws: expected [N, {self.num_ws}, {self.w_dim}], got {list(ws.shape)}.")
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode: {noise_mode!r} is not one of {', '.join(NOISE_MODES)}.")
        fused_modconv = self.fused_modconv if fused_modconv is None else fused_modconv
        if fused_modconv is None:
            fused_modconv = not self.training and ws.is_cuda  # on the CPU a grouped convolution is slower at any N

        ws = ws.float()
        x = img = None
        first = 0
        for resolution in self.resolutions:
            block = getattr(self, f"b{resolution}")
            # A block's image shares its w with the next block's first layer.
            block_ws = ws[:, first : first + block.num_conv + 1]
            dtype = compute_dtype(self, resolution, ws.device, force_fp32)
            x, img = block(x, img, block_ws, noise_mode, fused_modconv, dtype)
            first += block.num_conv
        return img


class Generator(torch.nn.Module):
    """z and the condition -> images."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,  # a power of two >= 8
        img_channels: int,
        mapping_kwargs: Kwargs | None = None,  # for the mapping network: num_layers, ...
        synthesis_kwargs: Kwargs | None = None,  # for SynthesisNetwork: channel_base, channel_max, ...
        mapping_network: Callable[..., MappingNetwork] = MappingNetwork,
    ) -> None:
        super().__init__()
        self.synthesis = SynthesisNetwork(
            w_dim=w_dim, img_resolution=img_resolution, img_channels=img_channels, **(synthesis_kwargs or {})
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = mapping_network(
            z_dim=z_dim, c_dim=c_dim, w_dim=w_dim, num_ws=self.num_ws, **(mapping_kwargs or {})
        )
        self.z_dim, self.c_dim, self.h_dim, self.w_dim = z_dim, c_dim, self.mapping.h_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        h: Tensor | None = None,
        *,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
        force_fp32: bool = False,
    ) -> Tensor:
        """As `mapping` and `synthesis` in turn; see their arguments.

        Returns:
            float32 [N, img_channels, img_resolution, img_resolution], about [-1, 1].
        """
        ws = self.mapping(z, c, h, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, noise_mode=noise_mode, force_fp32=force_fp32)
