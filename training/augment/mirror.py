"""The plain choices: images as they are, or flipped."""

import torch


def identity(images: torch.Tensor) -> torch.Tensor:
    return images


def random_mirror(images: torch.Tensor) -> torch.Tensor:
    """Each image flipped left-right with probability 1/2: DA(d) of IC-GAN (section 4), for real and fake alike."""
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flip, images.flip(3), images)
