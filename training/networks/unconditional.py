"""The door of networks that take no condition: what they are asked with, as all others, and what they refuse."""

import torch
from torch import Tensor

from training.networks.inputs import NOISE_MODES, check_image, check_input


class Generator(torch.nn.Module):
    """z -> images; a subclass says how in `images`."""

    c_dim = h_dim = 0
    w_dim = num_ws = 0  # there is no w, and nothing to project an image to

    def __init__(self, z_dim: int, img_resolution: int, img_channels: int) -> None:
        super().__init__()
        self.z_dim, self.img_resolution, self.img_channels = z_dim, img_resolution, img_channels

    def images(self, z: Tensor) -> Tensor:
        """float32 [N, z_dim] -> [N, img_channels, img_resolution, img_resolution]"""
        raise NotImplementedError

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
        """
        Args:
            z: [N, z_dim] ~ N(0, 1).
            c, h: None or [N, 0].
            truncation_psi: standard deviation of z: z is multiplied by it.
            truncation_cutoff: z is in one piece: 0 truncates nothing, any other number all of it.
            noise_mode, force_fp32: as of the other generators; there is no noise besides z, and all is float32.

        Returns:
            float32 [N, img_channels, img_resolution, img_resolution], about [-1, 1].

        Raises:
            ValueError: an input is missing or of another width, or there is no such noise mode.
        """
        check_input("z", z, self.z_dim, None)
        check_input("c", c, 0, len(z))
        check_input("h", h, 0, len(z))
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode: {noise_mode!r} is not one of {', '.join(NOISE_MODES)}.")
        return self.images(z.float() * (1 if truncation_cutoff == 0 else truncation_psi))


class Discriminator(torch.nn.Module):
    """Images -> logits; a subclass says how in `logits`."""

    c_dim = h_dim = 0

    def __init__(self, img_resolution: int, img_channels: int) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels

    def logits(self, img: Tensor) -> Tensor:
        """float32 [N, img_channels, img_resolution, img_resolution] -> [N, 1]"""
        raise NotImplementedError

    def forward(self, img: Tensor, c: Tensor | None = None, h: Tensor | None = None) -> Tensor:
        """
        Args:
            img: [N, img_channels, img_resolution, img_resolution], floating point, about [-1, 1].
            c, h: None or [N, 0].

        Returns:
            logits, float32 [N, 1].

        Raises:
            ValueError: an input is of another shape.
        """
        check_image(img, self.img_channels, self.img_resolution)
        check_input("c", c, 0, len(img))
        check_input("h", h, 0, len(img))
        return self.logits(img.float())
