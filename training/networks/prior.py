"""Generators whose noise is uniform: everybody draws z ~ N(0, 1), and it is turned into u at the door."""

import torch
from torch import Tensor

from training.networks.inputs import check_input


class UniformPrior(torch.nn.Module):
    """A generator of u ~ U(-1, 1), for callers that have z ~ N(0, 1): u = 2 Phi(z) - 1 = erf(z / sqrt 2), exactly.

    Truncation is the generator's own, of u: psi gives U(-psi, psi).

    Args:
        generator: takes u [N, z_dim] in [-1, 1] where others take z.
    """

    w_dim = num_ws = 0  # there is no w, and nothing to project an image to

    def __init__(self, generator: torch.nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.z_dim, self.c_dim, self.h_dim = generator.z_dim, generator.c_dim, generator.h_dim
        self.img_resolution, self.img_channels = generator.img_resolution, generator.img_channels

    def latent(self, z: Tensor) -> Tensor:
        """u of z, float32 [N, z_dim]."""
        check_input("z", z, self.z_dim, None)
        return torch.erf(z.float() / 2**0.5)

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
        """As the generator's own."""
        images: Tensor = self.generator(
            self.latent(z),
            c,
            h,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            noise_mode=noise_mode,
            force_fp32=force_fp32,
        )
        return images
