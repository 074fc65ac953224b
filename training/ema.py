"""The generator people use: an exponential moving average of the one that is trained."""

import copy
from typing import Any

import torch


class Ema:
    """theta_ema <- lerp(theta, theta_ema, beta), beta = 2^(-batch / halflife) (PGGAN, arXiv 1710.10196, appendix A.1).

    Buffers are copied, unless `average_buffers`: running statistics that are copied belong to other weights.

    Args:
        network: what to follow; `average` starts as a copy of it.
        halflife_kimg: half-life in thousands of images seen.
        rampup: the half-life is at most this share of the images seen so far, so that a young average forgets its start
            (StyleGAN2-ADA, arXiv 2006.06676, appendix C); None: constant.
        start_kimg: until then the average is a copy (BigGAN, arXiv 1809.11096, appendix C).
        average_buffers: floating-point buffers are averaged, too.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        halflife_kimg: float,
        rampup: float | None,
        start_kimg: float = 0.0,
        average_buffers: bool = False,
    ) -> None:
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.halflife_kimg, self.rampup, self.start_kimg = halflife_kimg, rampup, start_kimg
        self.average_buffers = average_buffers

    @torch.no_grad()
    def update(self, network: torch.nn.Module, cur_nimg: int, batch: int) -> None:
        halflife = self.halflife_kimg * 1000
        if self.rampup is not None:
            halflife = min(halflife, cur_nimg * self.rampup)
        beta = 0.0 if cur_nimg <= self.start_kimg * 1000 else 0.5 ** (batch / max(halflife, 1e-8))
        torch._foreach_lerp_(list(self.average.parameters()), list(network.parameters()), 1 - beta)
        for averaged, buffer in zip(self.average.buffers(), network.buffers(), strict=True):
            if self.average_buffers and averaged.is_floating_point():
                averaged.lerp_(buffer, 1 - beta)
            else:
                averaged.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)
