"""A generator as it is exported: one function of its inputs, everything else fixed."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from training.networks.spectral_norm import SNConv2d, SNLinear, SpectralNorm

WIDTHS = ("z", "c", "h")  # inputs, in order; those of width 0 are no inputs


@dataclass(frozen=True)
class Fixed:
    """What an exported generator is no longer asked; see the generator's own arguments.

    Args:
        noise_mode: 'const' or 'none'; noise drawn inside an exported program could not be repeated outside.
    """

    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    noise_mode: str = "const"


class InferenceGenerator(torch.nn.Module):
    """z and the condition -> images, float32 about [-1, 1]. Keeps a copy of the generator."""

    def __init__(self, generator: torch.nn.Module, fixed: Fixed) -> None:
        super().__init__()
        self.generator = without_spectral_norm(copy.deepcopy(generator).cpu())
        self.fixed = vars(fixed)
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, c: Tensor | None = None, h: Tensor | None = None) -> Tensor:
        images: Tensor = self.generator(z, c, h, **self.fixed)
        return images


def widths(generator: torch.nn.Module) -> dict[str, int]:
    """The inputs that a generator has, and how wide each is."""
    return {name: width for name in WIDTHS if (width := int(getattr(generator, f"{name}_dim")))}


def random_inputs(generator: torch.nn.Module, num: int, seed: int) -> dict[str, Tensor]:
    """Noise, one-hot classes and unit features for `num` images, as far as the generator has such inputs."""
    random = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(num, width, generator=random) for name, width in widths(generator).items()}
    if "c" in inputs:
        inputs["c"] = torch.nn.functional.one_hot(inputs["c"].argmax(dim=1), inputs["c"].shape[1]).float()
    if "h" in inputs:
        inputs["h"] = torch.nn.functional.normalize(inputs["h"], dim=1)
    return inputs


@torch.no_grad()
def without_spectral_norm(network: torch.nn.Module) -> torch.nn.Module:
    """The network in eval mode, its normalised weights computed once and kept in plain layers. Changes `network`."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SpectralNorm):
                setattr(parent, name, _plain(child))
    return network


def _plain(layer: SpectralNorm) -> torch.nn.Module:
    weight, bias = layer.eval().normalised_weight(), dict(layer.named_parameters()).get("bias")
    plain: torch.nn.Conv2d | torch.nn.Linear
    if isinstance(layer, SNConv2d):
        out_channels, in_channels, size, _ = weight.shape
        plain = torch.nn.Conv2d(in_channels, out_channels, size, padding=layer.padding, bias=bias is not None)
    elif isinstance(layer, SNLinear):
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    else:
        raise ValueError(f"layer: {type(layer).__name__} has no plain counterpart here; generators have none of it.")
    plain.weight = torch.nn.Parameter(weight)
    plain.bias = None if bias is None else torch.nn.Parameter(bias)
    return plain
