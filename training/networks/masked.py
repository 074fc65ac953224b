"""Conditioning by a vector at the input and a choice at the output, for networks that know of no condition.

Liu et al., Diverse Image Generation via Self-Conditioned GANs, arXiv 2006.10728, section 3.1 and supplement.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks import unconditional
from training.networks.inputs import check_image, check_input


class Generator(torch.nn.Module):
    """z and the embedded condition, joined as the noise of another generator.

    Args:
        trunk: its z is `embed_dim` wider than this one's for each condition.
        embed_dim: width of an embedding. That of a class has unit length, as a feature has before it is embedded.
    """

    w_dim = num_ws = 0  # there is no w, and nothing to project an image to

    def __init__(self, trunk: unconditional.Generator, c_dim: int, h_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.trunk, self.c_dim, self.h_dim = trunk, c_dim, h_dim
        self.z_dim = trunk.z_dim - embed_dim * num_conditions(c_dim, h_dim)
        self.img_resolution, self.img_channels = trunk.img_resolution, trunk.img_channels
        self.embed = torch.nn.Linear(c_dim, embed_dim, bias=False) if c_dim else None
        self.embed_feats = torch.nn.Linear(h_dim, embed_dim) if h_dim else None

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
        """As that of the trunk, with labels c [N, c_dim] and instance features h [N, h_dim]. z alone is truncated."""
        check_input("z", z, self.z_dim, None)
        check_input("c", c, self.c_dim, len(z))
        check_input("h", h, self.h_dim, len(z))
        parts = [z.float() * (1 if truncation_cutoff == 0 else truncation_psi)]
        if self.embed is not None:
            parts.append(F.normalize(self.embed(c.float()), dim=1))
        if self.embed_feats is not None:
            parts.append(self.embed_feats(h.float()))
        images: Tensor = self.trunk(torch.cat(parts, dim=1), noise_mode=noise_mode)
        return images


class Discriminator(torch.nn.Module):
    """A logit for each class, of which the one of the image's class counts; plus <embedding of the instance, features>.

    Args:
        trunk: images -> [N, ...] features.
        num_features: of an image, all together.
    """

    def __init__(
        self,
        trunk: torch.nn.Module,
        num_features: int,
        img_resolution: int,
        img_channels: int,
        c_dim: int,
        h_dim: int,
    ) -> None:
        super().__init__()
        self.trunk, self.c_dim, self.h_dim = trunk, c_dim, h_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.out = torch.nn.Linear(num_features, max(c_dim, 1))
        self.embed_feats = torch.nn.Linear(h_dim, num_features) if h_dim else None

    def features(self, img: Tensor) -> Tensor:
        """What the logits are made of, float32 [N, num_features]."""
        features: Tensor = self.trunk(img.float())
        return features.flatten(1)

    def forward(self, img: Tensor, c: Tensor | None = None, h: Tensor | None = None) -> Tensor:
        """
        Args:
            img: [N, img_channels, img_resolution, img_resolution], floating point, about [-1, 1].
            c: labels [N, c_dim]; None or [N, 0] if c_dim is 0.
            h: instance features [N, h_dim]; None or [N, 0] if h_dim is 0.

        Returns:
            logits, float32 [N, 1].

        Raises:
            ValueError: an input is missing or of another shape.
        """
        check_image(img, self.img_channels, self.img_resolution)
        check_input("c", c, self.c_dim, len(img))
        check_input("h", h, self.h_dim, len(img))
        x = self.features(img)  # [N, num_features]
        logits: Tensor = self.out(x)  # [N, c_dim or 1]
        if self.c_dim:
            logits = (logits * c).sum(dim=1, keepdim=True)
        if self.embed_feats is not None:
            logits = logits + (self.embed_feats(h.float()) * x).sum(dim=1, keepdim=True)
        return logits  # [N, 1]


def num_conditions(c_dim: int, h_dim: int) -> int:
    """How many embeddings a generator joins to z."""
    return (c_dim > 0) + (h_dim > 0)
