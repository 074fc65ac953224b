"""f_phi: an image -> its instance feature h, float32 [h_dim] of unit length (IC-GAN section 3).

An extractor is one entry of `EXTRACTORS`. What it needs to work again elsewhere is its JSON `description` and its
`state` (tensors); both are kept in the instance store's manifest and in every snapshot.
"""

from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F

from torch_utils.command_line import UserError, nearest
from torch_utils.files import sha256
from training.dataset import ImageFolderDataset
from training.randomness import permutation


class Extractor(Protocol):
    """How an image becomes a feature. Calling it: uint8 [N, C, H, W] -> float32 [N, h_dim], rows of unit length."""

    @property
    def h_dim(self) -> int: ...
    @property
    def description(self) -> dict[str, Any]:
        """JSON: name, h_dim and every choice that changes the numbers."""
        ...

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Fitted tensors; {} when published weights are all there is."""
        ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...
    @classmethod
    def fit(cls, dataset: ImageFolderDataset, weights: Path | None, device: torch.device) -> Self: ...
    @classmethod
    def restore(
        cls, description: dict[str, Any], state: dict[str, torch.Tensor], weights: Path | None, device: torch.device
    ) -> Self: ...


def normalise(features: torch.Tensor) -> torch.Tensor:
    """Rows of unit length (IC-GAN section 3.1: features are L2-normalised before neighbours and conditioning)."""
    return features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)


class PcaExtractor:
    """PCA-whitened pixels: needs no weights. For small, aligned images such as digits; not for photographs.

    Images are averaged down to at most 32 pixels a side; the components that explain 90 % of the variance are kept
    (whitening the rest would blow up noise: on the digits the share of 5 nearest neighbours of the same class is 0.96
    with 90 % and 0.91 with all) and scaled to unit variance.
    """

    MAX_SIDE, MAX_IMAGES, MAX_COMPONENTS, EXPLAINED = 32, 20_000, 256, 0.90

    def __init__(self, state: dict[str, torch.Tensor], channels: int) -> None:
        self.state, self.channels = state, channels
        self.h_dim = state["components"].shape[0]

    @property
    def description(self) -> dict[str, Any]:
        side = round((self.state["mean"].numel() / self.channels) ** 0.5)
        return {"name": "pca", "h_dim": self.h_dim, "side": side, "channels": self.channels}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self._pixels(_with_channels(images, self.channels), self.description["side"])
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
    def restore(
        cls, description: dict[str, Any], state: dict[str, torch.Tensor], weights: Path | None, device: torch.device
    ) -> Self:
        return cls({name: tensor.to(device) for name, tensor in state.items()}, description["channels"])


class ResNet50Extractor:
    """Global-average-pooled output of a ResNet-50 (torchvision's layout), 2048 wide: what the paper conditions on.

    Images are resized (bicubic, antialiased) to 224 x 224 and normalised by ImageNet's mean and deviation. Weights:
    torchvision's published IMAGENET1K_V2, or a local file: torchvision's or timm's ResNet-50, SwAV's (its projection
    heads are left out), `.pth` or `.safetensors`.
    """

    h_dim, SIDE = 2048, 224
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        import torchvision

        self.state: dict[str, torch.Tensor] = {}
        self.network = torchvision.models.resnet50(weights=None)
        self.network.fc = torch.nn.Identity()
        if weights is None:
            published = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
            try:
                tensors = published.get_state_dict(progress=True, check_hash=True)
            except (OSError, RuntimeError) as error:  # no network; RuntimeError: wrong hash
                raise UserError(
                    f"--extractor=resnet50: torchvision's published weights can't be fetched ({error}); give a local "
                    "file with --extractor-weights=FILE, or use --extractor=pca, which needs none"
                ) from None
            self.source = {"weights": "torchvision IMAGENET1K_V2"}
        else:
            tensors = load_weights(weights)
            self.source = {"weights": weights.name, "sha256": sha256(weights)}
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        missing = self.network.load_state_dict(tensors, strict=False).missing_keys
        if missing:
            raise UserError(
                f"--extractor-weights={weights} lacks {len(missing)} tensors of a ResNet-50 (first: {missing[0]}); "
                "expected a state dict in torchvision's naming"
            )
        self.network.eval().requires_grad_(False).to(device)
        self.device = device

    @property
    def description(self) -> dict[str, Any]:
        return {"name": "resnet50", "h_dim": self.h_dim, "side": self.SIDE, "filter": "bicubic"} | self.source

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        x = _with_channels(images, 3).to(self.device).float() / 255  # [N, 3, H, W]
        x = F.interpolate(x, size=(self.SIDE, self.SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(
            0, 1
        )
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (self.MEAN, self.STD))
        return normalise(self.network((x - mean) / std).float())

    @classmethod
    def fit(cls, dataset: ImageFolderDataset, weights: Path | None, device: torch.device) -> Self:
        return cls(weights, device)

    @classmethod
    def restore(
        cls, description: dict[str, Any], state: dict[str, torch.Tensor], weights: Path | None, device: torch.device
    ) -> Self:
        made_with = description.get("sha256")
        if made_with is not None and weights is None:
            raise UserError(
                f"this model's instances were made with the weights file {description['weights']} (sha256 "
                f"{made_with[:12]}...); give it with --extractor-weights=FILE"
            )
        extractor = cls(weights, device)
        if made_with != extractor.source.get("sha256"):
            raise UserError(
                f"--extractor-weights={weights} is not the file the instances were made with: expected "
                f"{description['weights']} (sha256 {str(made_with)[:12]}...), given "
                f"{str(extractor.source.get('sha256'))[:12]}..."
            )
        return extractor


EXTRACTORS: dict[str, type[Extractor]] = {"pca": PcaExtractor, "resnet50": ResNet50Extractor}


def fit_extractor(name: str, dataset: ImageFolderDataset, weights: Path | None, device: torch.device) -> Extractor:
    """An extractor for a data set: fitted to it, or with its published or local weights."""
    return _entry(name).fit(dataset, weights, device)


def restore_extractor(
    description: dict[str, Any], state: dict[str, torch.Tensor], weights: Path | None, device: torch.device
) -> Extractor:
    """The extractor a store or snapshot was made with."""
    return _entry(description["name"]).restore(description, state, weights, device)


def _entry(name: str) -> type[Extractor]:
    if name not in EXTRACTORS:
        raise UserError(f"--extractor={name} is unknown; there are {', '.join(EXTRACTORS)}.{nearest(name, EXTRACTORS)}")
    return EXTRACTORS[name]


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a local .safetensors or .pth file; nothing in the file is executed.

    Raises:
        UserError: missing, damaged, or not a state dict.
    """
    if not path.is_file():
        raise UserError(f"--extractor-weights={path} does not exist; expected a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch and safetensors raise their own kinds; each means the same to the user
        raise UserError(f"--extractor-weights={path} can't be read: damaged, or no weights; get it again") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"--extractor-weights={path} holds no state dict; expected a mapping of names to tensors")
    return content


def _with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Grey repeated to RGB, or RGB averaged to grey, where the extractor wants it."""
    if images.shape[1] == channels:
        return images
    return images.expand(-1, 3, -1, -1) if channels == 3 else images.float().mean(dim=1, keepdim=True)
