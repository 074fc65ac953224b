"""The noise maps of a synthesis network while they are searched (StyleGAN2, arXiv 1912.04958, appendix D)."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

COARSEST = 8  # pixels a side of the last level that is regularised

# Maps of several images: the name of a buffer of the generator -> [N, r, r].
Maps = Mapping[str, Tensor]


def own_maps(generator: torch.nn.Module) -> dict[str, Tensor]:
    """The noise maps of the network, [r, r] each; none for one that takes no noise."""
    return {name: buffer for name, buffer in generator.named_buffers() if name.endswith(".noise_const")}


def map_of(maps: Maps, row: int) -> dict[str, Tensor]:
    """The maps of one image, [r, r] each."""
    return {name: several[row] for name, several in maps.items()}


@contextlib.contextmanager
def maps_in_place(generator: torch.nn.Module, maps: Mapping[str, Tensor]) -> Iterator[None]:
    """The generator with these noise maps in place of its own as long as the block lasts.

    Args:
        maps: [r, r] each, for all images of a batch; or [N, r, r], one for each.
    """
    own = {name: generator.get_buffer(name) for name in maps}

    def put(chosen: Mapping[str, Tensor]) -> None:
        for name, value in chosen.items():
            layer, _, buffer = name.rpartition(".")
            setattr(generator.get_submodule(layer), buffer, value)

    put(maps)
    try:
        yield
    finally:
        put(own)


def synthesise(generator: torch.nn.Module, ws: Tensor, maps: Maps) -> Tensor:
    """Images about [-1, 1], float32 [N, C, R, R], differentiable in ws and maps; without maps by the network's own."""
    with maps_in_place(generator, maps):
        return generator.synthesis(ws, noise_mode="const", force_fp32=True)


def autocorrelation(maps: Maps) -> Tensor:
    """How much neighbouring pixels of the maps agree: sum of L_ij, [N] (appendix D, the equation of L_ij).

    At every scale down to 8 x 8 the squared mean of each pixel's product with its left and with its upper neighbour,
    wrapping at the edges. Halving averages four pixels and doubles, so that noise keeps its variance.
    """
    total = torch.zeros(len(next(iter(maps.values()))), device=next(iter(maps.values())).device)
    for noise in maps.values():
        while True:
            for axis in (1, 2):
                total = total + (noise * noise.roll(1, dims=axis)).mean(dim=(1, 2)).square()
            if noise.shape[-1] <= COARSEST:
                break
            noise = F.avg_pool2d(noise, 2) * 2
    return total


@torch.no_grad()
def normalise_(maps: Maps) -> None:
    """Bring every map to mean 0 and variance 1, in place."""
    for noise in maps.values():
        noise -= noise.mean(dim=(1, 2), keepdim=True)
        noise *= noise.square().mean(dim=(1, 2), keepdim=True).rsqrt()
