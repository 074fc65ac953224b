"""Batch normalisation, its gain and bias learned or made of a condition; and which statistics it uses.

Ioffe and Szegedy, arXiv 1502.03167; conditional: Dumoulin et al., arXiv 1610.07629. Standing statistics: BigGAN
(Brock et al., arXiv 1809.11096, appendices).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor

from torch_utils.distributed import world_size
from torch_utils.misc import follow
from training.condition import Condition

BATCH_NORM_MODES = ("running", "standing", "batch")
STANDING_PASSES = 100  # of standing statistics (BigGAN, arXiv 1809.11096, appendices)


class Normaliser(torch.nn.Module):
    """x with mean 0 and variance 1 in every channel, before gain and bias.

    In training mode by the statistics of the batch, which the running ones `stored_mean` and `stored_var` follow; with
    `across`, of the batches of all processes together, so that their number changes nothing. In eval mode by the stored
    ones, unless `batch_norm_mode` says otherwise, and never across processes. Statistics that are not finite are not
    followed.
    """

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int, momentum: float, eps: float, across: bool) -> None:
        super().__init__()
        self.momentum, self.eps, self.across = momentum, eps, across
        self.use_batch = False  # in eval mode: normalise by the batch
        self.passes: int | None = None  # in eval mode: normalise by the batch, and average so many batches so far
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def normalise(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> the same shape and dtype."""
        if self.training and self.across and world_size() > 1:
            return self._follow_across(x)
        if self.training:
            return self._follow(x, self.momentum)
        if self.passes is not None:
            self.passes += 1
            return self._follow(x, 1 / self.passes)  # the plain mean of all passes
        if self.use_batch:
            return F.batch_norm(x, None, None, training=True, eps=self.eps)
        return F.batch_norm(x, self.stored_mean, self.stored_var, training=False, eps=self.eps)

    def _follow(self, x: Tensor, momentum: float) -> Tensor:
        mean, var = self.stored_mean.clone(), self.stored_var.clone()
        normalised = F.batch_norm(x, mean, var, training=True, momentum=momentum, eps=self.eps)
        follow(self.stored_mean, mean)
        follow(self.stored_var, var)
        return normalised

    def _follow_across(self, x: Tensor) -> Tensor:
        """As `_follow`, over the batches of all processes. The sums are differentiable, also through the others'."""
        total = torch.distributed.nn.functional.all_reduce
        values, shape = x.float(), (1, -1, 1, 1)
        count = values.numel() // values.shape[1] * world_size()  # the processes have equal batches
        mean = total(values.sum(dim=[0, 2, 3])) / count  # [channels]
        centred = values - mean.view(shape)
        var = total(centred.square().sum(dim=[0, 2, 3])) / count  # after the mean: a difference of squares loses digits
        with torch.no_grad():
            follow(self.stored_mean, self.stored_mean.lerp(mean, self.momentum))
            unbiased = var * (count / (count - 1))  # as PyTorch's own
            follow(self.stored_var, self.stored_var.lerp(unbiased, self.momentum))
        return (centred * (var + self.eps).rsqrt().view(shape)).to(x.dtype)


class BatchNorm(Normaliser):
    """With a learned gain and bias."""

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5, across: bool = True) -> None:
        super().__init__(channels, momentum, eps, across)
        self.gain = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        return x * self.gain.to(x.dtype)[:, None, None] + self.bias.to(x.dtype)[:, None, None]


class ConditionalBatchNorm(Normaliser):
    """With gain 1 + gain(y) and bias bias(y), where `gain` and `bias` are layers from the condition to the channels."""

    def __init__(
        self,
        channels: int,
        gain: torch.nn.Module,  # [N, cond_dim] -> [N, channels]
        bias: torch.nn.Module,  # [N, cond_dim] -> [N, channels]
        momentum: float = 0.1,
        eps: float = 1e-5,
        across: bool = True,
    ) -> None:
        super().__init__(channels, momentum, eps, across)
        self.gain, self.bias = gain, bias

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.normalise(x)  # [N, channels, H, W]
        gain, bias = 1 + self.gain(y), self.bias(y)  # [N, channels]
        return x * gain.to(x.dtype)[:, :, None, None] + bias.to(x.dtype)[:, :, None, None]


@contextmanager
def standing_still(*networks: torch.nn.Module) -> Iterator[None]:
    """For passes that are repeated in training: batches are normalised as ever, no running statistics follow them."""
    layers = [module for network in networks for module in network.modules() if isinstance(module, Normaliser)]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def has_batch_norm(network: torch.nn.Module) -> bool:
    """Whether `batch_norm_mode` makes a difference to the network."""
    return any(isinstance(module, Normaliser) for module in network.modules())


@contextmanager
def batch_norm_mode(
    network: torch.nn.Module, mode: str, passes: Iterable[tuple[Tensor, Condition]] = (), **how: float | None
) -> Iterator[None]:
    """Choose, for the length of the block, by what a generator in eval mode normalises; afterwards it is as before.

    Args:
        network: a generator in eval mode.
        mode: 'running', the statistics that followed training, which an averaged generator has of other weights than
            its own; 'standing', the means over `passes`, which are run first; 'batch', of whatever is generated
            together, so that an image depends on its neighbours.
        passes: noise [N, z_dim] and condition of each forward pass, for 'standing' alone. BigGAN: 100.
        how: truncation of these passes: statistics are of what will be generated.

    Raises:
        ValueError: another mode, a network in training mode, 'standing' without passes, or passes with another mode.
    """
    if mode not in BATCH_NORM_MODES:
        raise ValueError(f"mode: {mode!r} is not one of {', '.join(BATCH_NORM_MODES)}.")
    if network.training:
        raise ValueError("network: expected one in eval mode; in training mode it normalises by the batch anyway.")
    layers = [module for module in network.modules() if isinstance(module, Normaliser)]
    before = [(layer.stored_mean.clone(), layer.stored_var.clone()) for layer in layers]
    passes = list(passes)
    if (mode == "standing") != bool(passes):
        raise ValueError(
            f"passes: {len(passes)} given with mode {mode!r}; 'standing' needs some, the others take none."
        )
    try:
        for layer in layers:
            layer.use_batch = mode == "batch"
            layer.passes = 0 if mode == "standing" else None
        with torch.no_grad():
            for z, condition in passes:
                network(z, condition.c, condition.h, **how)
        for layer in layers:
            layer.passes = None
        yield
    finally:
        for layer, (mean, var) in zip(layers, before, strict=True):
            layer.use_batch, layer.passes = False, None
            layer.stored_mean.copy_(mean)
            layer.stored_var.copy_(var)
