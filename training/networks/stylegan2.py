"""StyleGAN2-ADA generator and discriminator, conditioned on nothing or on class labels.

StyleGAN: Karras et al., arXiv 1812.04948. StyleGAN2: arXiv 1912.04958. StyleGAN2-ADA: arXiv 2006.06676.

A mapping network that embeds other conditions takes the place of `MappingNetwork` by way of the constructors; nothing
else here knows of them. Parameters and buffers have the names and shapes of the published
checkpoints.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops.bias_act import activations, bias_act
from torch_utils.ops.upfirdn2d import downsample2d, setup_filter, upsample2d
from torch_utils.precision import conv_format
from training.networks.inputs import NOISE_MODES, check_image, check_input
from training.networks.layers import (
    Conv2dLayer,
    FullyConnectedLayer,
    MinibatchStdLayer,
    modulated_conv2d,
    normalize_2nd_moment,
    require_activation,
)

Kwargs = Mapping[str, Any]  # arguments by name for the constructor they reach; an unknown name is a TypeError there
ARCHITECTURES = ("orig", "skip", "resnet")  # StyleGAN2, figure 7


class MappingNetwork(torch.nn.Module):
    """z and the condition -> ws (StyleGAN, section 2).

    A subclass that conditions on more overrides `embed_condition`, passes the width of what that returns as
    `cond_features`, and sets `h_dim` if h is part of it.
    """

    h_dim = 0  # width of h; the base takes none

    def __init__(
        self,
        z_dim: int,  # 0: no noise
        c_dim: int,  # 0: no labels
        w_dim: int,
        num_ws: int | None,  # copies of w, one a layer; None: one w without that axis, and no mean of w
        num_layers: int = 8,
        embed_features: int | None = None,  # width of the embedding of c; None: w_dim
        layer_features: int | None = None,  # width between layers; None: w_dim
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,  # of the layers, not of the embedding
        w_avg_beta: float = 0.995,  # share that the mean of w keeps in an update
        cond_features: int | None = None,  # width of what embed_condition returns; None: the embedding of c alone
    ) -> None:
        super().__init__()
        embed_features = w_dim if embed_features is None else embed_features
        layer_features = w_dim if layer_features is None else layer_features
        if cond_features is None:
            cond_features = embed_features if c_dim > 0 else 0
        if num_layers < 1:
            raise ValueError(f"num_layers: {num_layers} is not a number of layers >= 1.")
        if z_dim + cond_features == 0:
            raise ValueError("z_dim and the condition are both of width 0: there is nothing to map.")
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta

        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        widths = [z_dim + cond_features] + [layer_features] * (num_layers - 1) + [w_dim]
        for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            layer = FullyConnectedLayer(width_in, width_out, activation=activation, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{index}", layer)
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def embed_condition(self, c: Tensor | None, h: Tensor | None) -> Tensor | None:
        """Embeddings [N, cond_features] of the condition, before normalisation; None where there is no condition."""
        return self.embed(c.float()) if self.c_dim > 0 else None

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        h: Tensor | None = None,
        *,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """
        Args:
            z: [N, z_dim] ~ N(0, 1); None if z_dim is 0.
            c: labels [N, c_dim]; None or [N, 0] if c_dim is 0.
            h: instance features [N, h_dim]; None or [N, 0] if h_dim is 0.
            truncation_psi: 1 leaves w as it is, 0 makes it the mean.
            truncation_cutoff: how many of the first ws to truncate; None: all.
            update_w_avg: move the mean of w towards this batch's.

        Returns:
            ws, float32 [N, num_ws, w_dim]; [N, w_dim] if num_ws is None.

        Raises:
            ValueError: an input is missing or of another width.
        """
        if (truncation_psi != 1 or update_w_avg) and self.num_ws is None:
            raise ValueError("truncation_psi, update_w_avg: a mapping network without num_ws keeps no mean of w.")
        check_input("z", z, self.z_dim, None)
        num = next((len(value) for value in (z, c, h) if value is not None), None)
        check_input("c", c, self.c_dim, num)
        check_input("h", h, self.h_dim, num)

        # Normalise z, and the embeddings of the condition all together.
        parts = []
        if self.z_dim > 0:
            parts.append(normalize_2nd_moment(z.float()))  # [N, z_dim]
        cond = self.embed_condition(c, h)  # [N, cond_features]
        if cond is not None:
            parts.append(normalize_2nd_moment(cond))
        x = torch.cat(parts, dim=1)  # [N, z_dim + cond_features]

        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)  # [N, layer_features], at last [N, w_dim]
        if self.num_ws is None:
            return x

        if update_w_avg:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        ws = x.unsqueeze(1).repeat(1, self.num_ws, 1)  # [N, num_ws, w_dim]
        if truncation_psi != 1:
            # w' = w_avg + psi * (w - w_avg) (StyleGAN, appendix B)
            truncated = self.w_avg.lerp(ws[:, :truncation_cutoff], truncation_psi)
            ws = torch.cat([truncated, ws[:, truncated.shape[1] :]], dim=1)
        return ws


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


def compute_dtype(
    network: SynthesisNetwork | Discriminator, resolution: int, device: torch.device, force_fp32: bool
) -> torch.dtype:
    """The type that the block of a resolution computes in: low precision is for the highest ones, from 8 on.

    float16 is for CUDA only. Attributes of the network decide, so that they can be changed after it was made.
    """
    is_low = resolution >= max(2 * network.img_resolution >> network.num_fp16_res, 8)
    is_there = network.low_dtype != torch.float16 or device.type == "cuda"
    return network.low_dtype if is_low and is_there and not force_fp32 else torch.float32


def check_architecture(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: {architecture!r} is not one of {', '.join(ARCHITECTURES)}.")
