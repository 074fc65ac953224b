"""What an extractor is: f_phi, an image -> its instance feature h of unit length (IC-GAN section 3)."""

from typing import Any, Protocol

import torch

FLAG = "--extractor-weights"
PCA = "or use --extractor=pca, which needs none"
REMEDY = f"give a local file with {FLAG}=FILE, {PCA}"


class Extractor(Protocol):
    """How an image becomes a feature. Calling it: uint8 [N, C, H, W] on any device -> float32 [N, h_dim], unit rows.

    What it needs to work again elsewhere is its JSON `description` and its `state`; both are kept in the manifest of
    the instance store and in every snapshot.
    """

    @property
    def h_dim(self) -> int: ...
    @property
    def batch(self) -> int:
        """How many images a call is best given, on the device the extractor runs on."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """JSON: name, h_dim, every choice that changes the numbers, and where weights came from."""
        ...

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Fitted tensors; {} when weights in a file are all there is."""
        ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


def normalise(features: torch.Tensor) -> torch.Tensor:
    """Rows of unit length (IC-GAN section 3.1: features are L2-normalised before neighbours and conditioning)."""
    rows: torch.Tensor = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return rows


def with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Grey repeated to RGB, or RGB averaged to grey, where the extractor wants it.

    Args:
        images: [N, 1 or 3, H, W]
        channels: 1 or 3.
    """
    if images.shape[1] == channels:
        return images
    return images.expand(-1, 3, -1, -1) if channels == 3 else images.float().mean(dim=1, keepdim=True)
