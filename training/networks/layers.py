"""Layers that the StyleGAN2 networks are made of.

All weights are drawn from N(0, 1) and scaled at run time by 1 / sqrt(fan_in), so that every parameter learns at the
same rate (equalised learning rate, PGGAN, arXiv 1710.10196, section 4.1).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_utils.ops.bias_act import activations, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import setup_filter


def normalize_2nd_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean(x^2) + eps) along `dim` (pixelwise normalisation, PGGAN, arXiv 1710.10196, section 4.2)."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def require_activation(name: str) -> str:
    """`name`, or a ValueError if there is no such activation."""
    if name not in activations:
        raise ValueError(f"activation: {name!r} is not one of {', '.join(activations)}.")
    return name


class FullyConnectedLayer(torch.nn.Module):
    """y = act(W x / sqrt(in_features) + b), both times `lr_multiplier`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1,  # parameters are stored this much larger, so that Adam moves them this much less
        bias_init: float = 0,
    ) -> None:
        super().__init__()
        self.activation = require_activation(activation)
        self.weight = torch.nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = torch.nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype) * self.weight_gain
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if bias is not None and self.bias_gain != 1:
            bias = bias * self.bias_gain
        if self.activation == "linear":
            return torch.nn.functional.linear(x, weight, bias)
        y = x @ weight.t()
        return bias_act(y, None if bias is None else bias.to(y.dtype), act=self.activation)  # autocast chooses y's

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, activation={self.activation}"


class Conv2dLayer(torch.nn.Module):
    """Convolution with optional up- or downsampling, then bias and activation; padded to keep the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,  # odd
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp: float | None = None,  # bound of the result; None: none
        trainable: bool = True,  # False: weight and bias are buffers under the same names, out of an optimiser's reach
    ) -> None:
        super().__init__()
        self.activation = require_activation(activation)
        self.up, self.down, self.conv_clamp = up, down, conv_clamp
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = activations[activation].default_gain
        self._register("weight", torch.randn(out_channels, in_channels, kernel_size, kernel_size), trainable)
        self._register("bias", torch.zeros(out_channels) if bias else None, trainable)

    def _register(self, name: str, value: Tensor | None, trainable: bool) -> None:
        if trainable and value is not None:
            self.register_parameter(name, torch.nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        x = conv2d_resample(
            x,
            (self.weight * self.weight_gain).to(x.dtype),
            f=self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            flip_weight=self.up == 1,  # published parameters of upsampling layers are stored the other way round
        )
        bias = None if self.bias is None else self.bias.to(x.dtype)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)

    def extra_repr(self) -> str:
        out_channels, in_channels, size, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, {size}, activation={self.activation}, up={self.up}, down={self.down}"


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused: bool = False,
) -> Tensor:
    """Convolve each image with weights of its own: w' = s_i w_ijk (StyleGAN2, arXiv 1912.04958, eq. 1), and with
    `demodulate` w'' = w' / sqrt(sum_ik w'^2 + eps) (eq. 3).

    Args:
        x: [N, in_channels, H, W].
        weight: [out_channels, in_channels, k, k], shared by the batch.
        styles: s, [N, in_channels].
        noise: [N or 1, 1, H * up, W * up], added to the result.
        up: factor of upsampling.
        padding: as for `conv2d_resample`.
        resample_filter: as for `conv2d_resample`.
        demodulate: normalise the weights of every output channel.
        flip_weight: as for `conv2d_resample`.
        fused: one convolution in N groups with the weights w'' spelt out. Otherwise x is scaled by s before and by
            w'' / w' after a convolution with the shared weights: the same numbers, without N copies of the weights.

    Returns:
        [N, out_channels, H * up, W * up] in x's dtype.
    """
    if x.dtype == torch.float16 and demodulate:
        # Demodulation takes every factor of s or of an output channel's weights out again: choose factors that keep
        # the sums of a convolution below float16's 65504.
        fan_in = weight[0].numel()
        weight = weight / (weight.abs().amax(dim=[1, 2, 3], keepdim=True).clamp(min=1e-8) * math.sqrt(fan_in))
        styles = styles / styles.abs().amax(dim=1, keepdim=True).clamp(min=1e-8)

    demodulation = None  # [N, out_channels], w'' / w'
    if demodulate:
        # sum_ik (s_i w_ijk)^2 = sum_i s_i^2 sum_k w_ijk^2: a small matrix product, not N copies of the weights.
        energy = weight.square().sum(dim=[2, 3])
        demodulation = (styles.square() @ energy.t() + 1e-8).rsqrt()

    if weight.shape[2:] == (1, 1) and up == 1 and padding == 0:
        y = _modulated_conv2d_1x1(x, weight, styles, demodulation)
        return y if noise is None else y + noise.to(y.dtype)
    if fused and len(x) > 0:
        return _modulated_conv2d_fused(
            x, weight, styles, demodulation, noise, up, padding, resample_filter, flip_weight
        )

    x = x * styles.to(x.dtype)[:, :, None, None]
    x = conv2d_resample(x, weight.to(x.dtype), resample_filter, up=up, padding=padding, flip_weight=flip_weight)
    if demodulation is not None:
        factor = demodulation.to(x.dtype)[:, :, None, None]
        return x * factor if noise is None else torch.addcmul(noise.to(x.dtype), x, factor)
    return x if noise is None else x + noise.to(x.dtype)


def _modulated_weights(weight: Tensor, styles: Tensor, demodulation: Tensor | None) -> Tensor:
    """w'', or w' without demodulation, [N, out_channels, in_channels, k, k]."""
    factor = styles[:, None, :] if demodulation is None else demodulation[:, :, None] * styles[:, None, :]
    return weight * factor[:, :, :, None, None]


def _modulated_conv2d_1x1(x: Tensor, weight: Tensor, styles: Tensor, demodulation: Tensor | None) -> Tensor:
    """A matrix product for every image: N copies of 1x1 weights are small, and x need not be scaled."""
    weights = _modulated_weights(weight, styles, demodulation)[:, :, :, 0, 0].to(x.dtype)  # [N, out, in]
    if x.is_contiguous(memory_format=torch.channels_last):  # then its gradient is so, too
        y = torch.bmm(x.permute(0, 2, 3, 1).flatten(1, 2), weights.transpose(1, 2)).transpose(1, 2)  # [N, out, H * W]
        return y.contiguous().unflatten(2, x.shape[2:])
    return torch.bmm(weights, x.flatten(2)).unflatten(2, x.shape[2:])  # [N, out, H, W]


def _modulated_conv2d_fused(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    demodulation: Tensor | None,
    noise: Tensor | None,
    up: int,
    padding: int,
    resample_filter: Tensor | None,
    flip_weight: bool,
) -> Tensor:
    weights = _modulated_weights(weight, styles, demodulation).to(x.dtype)  # [N, out, in, k, k]
    num = len(x)
    x = conv2d_resample(
        x.reshape(1, -1, *x.shape[2:]),  # [1, N * in, H, W]
        weights.flatten(0, 1),  # [N * out, in, k, k]
        resample_filter,
        up=up,
        padding=padding,
        groups=num,
        flip_weight=flip_weight,
    )
    x = x.reshape(num, -1, *x.shape[2:])
    return x if noise is None else x + noise.to(x.dtype)


class MinibatchStdLayer(torch.nn.Module):
    """Appends `num_channels` constant maps: the standard deviation over a group of images, averaged over channels and
    pixels (minibatch standard deviation, PGGAN, arXiv 1710.10196, section 3).

    A batch is cut into groups of the largest size that divides it and is at most `group_size`: 6 images and
    group_size 4 give two groups of 3. Images N / group apart form a group.
    """

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size = group_size  # None: the whole batch
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        num, channels, height, width = x.shape
        largest = max(num, 1) if self.group_size is None else min(self.group_size, max(num, 1))
        group = next(size for size in range(largest, 0, -1) if num % size == 0)

        y = x.reshape(group, num // group, self.num_channels, channels // self.num_channels, height, width)
        y = (y - y.mean(dim=0)).square().mean(dim=0)  # [N / group, F, C / F, H, W] variance
        y = (y + 1e-8).sqrt().mean(dim=[2, 3, 4])  # [N / group, F]
        y = y.repeat(group, 1)[:, :, None, None].expand(-1, -1, height, width)  # [N, F, H, W]
        return torch.cat([x, y], dim=1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
