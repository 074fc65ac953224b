"""Layers whose weight is divided by an estimate of its largest singular value.

Miyato et al., Spectral Normalization for Generative Adversarial Networks, arXiv 1802.05957, section 2.1, algorithm 1.
The state of the power iteration is two buffers with the names and shapes of the published BigGAN checkpoints.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Computes in the dtypes of the tensors, also under autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def power_iteration(matrix: Tensor, u: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """One step of the power iteration (arXiv 1802.05957, algorithm 1).

    Args:
        matrix: [rows, columns].
        u: [rows], the last estimate of the first left singular vector; unit length or not.
        eps: smallest length that is divided by.

    Returns:
        sigma, scalar, with a gradient to the matrix through neither singular vector; the next u, [rows].
    """
    with torch.no_grad():
        v = matrix.t() @ u
        v /= torch.linalg.vector_norm(v).clamp_min(eps)  # [columns]
        u = matrix @ v
        u /= torch.linalg.vector_norm(u).clamp_min(eps)  # [rows]
    return torch.dot(u, matrix @ v), u


class SpectralNorm(torch.nn.Module):
    """What the layers below share: a weight, one row an output, that is read through `normalised_weight`.

    The state is `u0` [1, rows] and `sv0` [1]. Training moves it by one iteration with each forward pass; evaluation
    goes the same iteration from the stored state and stores nothing, so a network in eval mode is a function.
    """

    weight: Tensor
    u0: Tensor
    sv0: Tensor

    def start_iteration(self, eps: float) -> None:
        """Random u0; to be called once there is a weight."""
        self.eps = eps
        self.register_buffer("u0", torch.randn(1, self.weight.shape[0]))
        self.register_buffer("sv0", torch.ones(1))

    def normalised_weight(self) -> Tensor:
        """weight / sigma, float32 of the weight's shape."""
        with without_autocast(self.weight.device):  # sigma in half precision would be off by 1 %
            sigma, u = power_iteration(self.weight.flatten(1), self.u0[0], self.eps)
            if self.training:
                with torch.no_grad():
                    self.u0[0] = u
                    self.sv0[0] = sigma
            return self.weight / sigma.clamp_min(self.eps)


class SNConv2d(SpectralNorm):
    """Convolution that keeps the size (odd kernels) with a normalised weight."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True, eps: float = 1e-6):
        super().__init__()
        self.padding = kernel_size // 2
        self.weight = torch.nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.start_iteration(eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normalised_weight(), self.bias, padding=self.padding)


class SNLinear(SpectralNorm):
    """Fully connected layer with a normalised weight."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features))
        self.bias = torch.nn.Parameter(torch.zeros(out_features)) if bias else None
        self.start_iteration(eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalised_weight(), self.bias)


class Embedding(torch.nn.Module):
    """Labels [N, num_labels] -> rows [N, dim]; a label that is no one-hot row gives the mixture it describes."""

    def __init__(self, num_labels: int, dim: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(num_labels, dim))

    def forward(self, c: Tensor) -> Tensor:
        return c @ self.weight


class SNEmbedding(SpectralNorm):
    """As `Embedding`, with a normalised table."""

    def __init__(self, num_labels: int, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(num_labels, dim))
        self.start_iteration(eps)

    def forward(self, c: Tensor) -> Tensor:
        return c @ self.normalised_weight()


INITIALISATIONS = ("ortho", "xavier", "normal")


def initialise(network: torch.nn.Module, how: str) -> None:
    """Draw every weight of the layers above; biases stay 0.

    Args:
        how: 'ortho' orthogonal (Saxe et al., arXiv 1312.6120; BigGAN), 'xavier' uniform (Glorot and Bengio, 2010;
            SAGAN), 'normal' N(0, 0.02) (BigGAN on CIFAR).

    Raises:
        ValueError: another word.
    """
    draw = {
        "ortho": torch.nn.init.orthogonal_,
        "xavier": torch.nn.init.xavier_uniform_,
        "normal": lambda weight: torch.nn.init.normal_(weight, std=0.02),
    }
    if how not in draw:
        raise ValueError(f"init: {how!r} is not one of {', '.join(INITIALISATIONS)}.")
    for module in network.modules():
        if isinstance(module, SpectralNorm | Embedding):
            draw[how](module.weight)
