"""Self-attention over the pixels of a feature map (SAGAN: Zhang et al., arXiv 1805.08318, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks.spectral_norm import SNConv2d


class SelfAttention(torch.nn.Module):
    """x + gamma * o(attention(x)), with gamma from 0: the layer starts as the identity (SAGAN, eq. 1 to 3).

    As in the published networks, and unlike the paper's formulas, keys and values are pooled over 2x2 pixels and the
    values are half as wide as x. The dot products are not divided by the square root of their width.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        narrow, half = max(channels // 8, 1), max(channels // 2, 1)
        self.theta = SNConv2d(channels, narrow, kernel_size=1, bias=False, eps=eps)  # queries
        self.phi = SNConv2d(channels, narrow, kernel_size=1, bias=False, eps=eps)  # keys
        self.g = SNConv2d(channels, half, kernel_size=1, bias=False, eps=eps)  # values
        self.o = SNConv2d(half, channels, kernel_size=1, bias=False, eps=eps)
        self.gamma = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.theta(x).flatten(2)  # [N, C / 8, HW]
        key = F.max_pool2d(self.phi(x), 2).flatten(2)  # [N, C / 8, HW / 4]
        value = F.max_pool2d(self.g(x), 2).flatten(2)  # [N, C / 2, HW / 4]
        attention = (query.transpose(1, 2) @ key).softmax(dim=2)  # [N, HW, HW / 4]
        y = value @ attention.transpose(1, 2)  # [N, C / 2, HW]
        return x + self.gamma * self.o(y.unflatten(2, x.shape[2:]))
