"""PCA-whitened pixels as instance features: the extractor that needs no weights."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from stylegan2_icgan.extractors.extractor import normalise, with_channels
from torch_utils.command_line import UserError
from training.dataset import ImageFolderDataset
from training.randomness import permutation


class PcaExtractor:
    """PCA-whitened pixels: needs no weights. For small, aligned images such as digits; not for photographs.

    Images are averaged down to at most 32 pixels a side; the components that explain 90 % of the variance are kept
    (whitening the rest would blow up noise: on the digits the share of 5 nearest neighbours of the same class is 0.96
    with 90 % and 0.91 with all) and scaled to unit variance.
    """

    MAX_SIDE, MAX_IMAGES, MAX_COMPONENTS, EXPLAINED = 32, 20_000, 256, 0.90
    batch = 64

    def __init__(self, state: dict[str, torch.Tensor], channels: int) -> None:
        self.state, self.channels = state, channels
        self.h_dim = state["components"].shape[0]

    @property
    def description(self) -> dict[str, Any]:
        side = round((self.state["mean"].numel() / self.channels) ** 0.5)
        return {"name": "pca", "h_dim": self.h_dim, "side": side, "channels": self.channels}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self._pixels(with_channels(images, self.channels), self.description["side"])
        centred = pixels.to(self.state["mean"].device) - self.state["mean"]
        return normalise(centred @ self.state["components"].T)

    @staticmethod
    def _pixels(images: torch.Tensor, side: int) -> torch.Tensor:
        """float32 [N, C * side * side] in [0, 1]."""
        x = images.float() / 255
        if x.shape[-1] != side or x.shape[-2] != side:
            x = F.interpolate(x, size=(side, side), mode="area")
        return x.flatten(1)

    @classmethod
    def fit(cls, dataset: ImageFolderDataset, weights: Path | None, device: torch.device) -> Self:
        """Fitted to at most 20,000 images of a data set, always the same ones.

        Raises:
            UserError: weights given, or images that are all the same.
        """
        if weights is not None:
            raise UserError(
                f"--extractor-weights={weights} given, but --extractor=pca is fitted to the data; leave it out"
            )
        chosen = np.sort(permutation(len(dataset), 0)[: cls.MAX_IMAGES])
        side = min(dataset.resolution, cls.MAX_SIDE)
        blocks = [cls._pixels(dataset.images(chosen[i : i + 1000]), side) for i in range(0, len(chosen), 1000)]
        pixels = torch.cat(blocks).double()
        mean = pixels.mean(dim=0)
        covariance = (pixels - mean).T @ (pixels - mean) / max(len(pixels) - 1, 1)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        if values[0] <= 0:
            raise UserError(f"--data={dataset.path}: all images are the same; there is nothing to tell instances apart")
        explained = values.cumsum(0) / values.sum()
        count = min(int((explained < cls.EXPLAINED).sum()) + 1, cls.MAX_COMPONENTS)
        components = vectors[:, :count].T / values[:count, None].sqrt()
        state = {"mean": mean.float().to(device), "components": components.float().contiguous().to(device)}
        return cls(state, dataset.num_channels)

    @classmethod
    def restore(cls, description: dict[str, Any], state: dict[str, torch.Tensor], device: torch.device) -> Self:
        return cls({name: tensor.to(device) for name, tensor in state.items()}, description["channels"])
