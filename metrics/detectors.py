"""The table of detectors: networks that turn images into the features that metrics compare."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from metrics.inception import FLAG, Inception
from metrics.lpips import VGG16
from metrics.resizing import FILTERS, resized, seen_at, with_colour
from torch_utils.command_line import UserError, nearest
from torch_utils.float32 import exact_float32
from torch_utils.published import copy_of


class Detector(Protocol):
    """Images -> features. What changes the numbers stands in `description`, JSON, with the hash of the weights."""

    @property
    def width(self) -> int: ...
    @property
    def batch(self) -> int:
        """Images a call is given: always as many, since the batch can change the last bits of a feature."""
        ...

    @property
    def description(self) -> dict[str, Any]: ...
    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, 1 or 3, H, W] on any device -> float32 [N, width]."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """float32 [N, K] of a classifier.

        Raises:
            UserError: this detector is none.
        """
        ...


class RandomProjection:
    """A fixed random linear map of the images at 16 pixels: no weights, no download. For tests and smoke runs.

    Its numbers say how different two sets of pixels are, not how different they look.
    """

    width, batch, SIDE = 64, 256, 16

    def __init__(self, how: str = "clean", device: torch.device | None = None) -> None:
        self.how, self.device = how, device or torch.device("cpu")
        draw = np.random.Generator(np.random.Philox(key=2021))
        matrix = draw.standard_normal((3 * self.SIDE**2, self.width)) / np.sqrt(3 * self.SIDE**2)
        self.matrix = torch.from_numpy(matrix).float().to(self.device)
        self.description: dict[str, Any] = {"name": "random", "sha256": ""} | seen_at(self.SIDE, how)

    def features(self, images: Tensor) -> Tensor:
        pixels = resized(with_colour(images.to(self.device)), self.SIDE, self.how) / 127.5 - 1
        with exact_float32():
            return pixels.flatten(1) @ self.matrix

    def logits(self, images: Tensor) -> Tensor:
        return self.features(images)


class Identity:
    """For ready-made features: passes rows on."""

    batch = 1024

    def __init__(self, width: int) -> None:
        self.width = width
        self.description: dict[str, Any] = {"name": "identity", "sha256": "", "width": width}

    def features(self, images: Tensor) -> Tensor:
        return images.float()

    def logits(self, images: Tensor) -> Tensor:
        raise UserError("is: ready-made features are no logits; give images")


class NetworkDetector:
    """Any network with its own preprocessing.

    Args:
        network: preprocessed images -> [N, width].
        preprocess: uint8 [N, C, H, W] -> what the network sees; it brings the images to the network's device.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        preprocess: Callable[[Tensor], Tensor],
        width: int,
        batch: int,
        description: dict[str, Any],
    ) -> None:
        self.network, self.preprocess = network, preprocess
        self.width, self.batch, self.description = width, batch, description

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        with exact_float32():
            return self.network(self.preprocess(images)).float()

    def logits(self, images: Tensor) -> Tensor:
        raise UserError(f"--detector={self.description['name']} gives no class logits; use --detector=inception")


def _vgg16(weights: Path | None, how: str, device: torch.device) -> Detector:
    """The 4096 activations before the last layer of torchvision's VGG16."""
    import torchvision

    found = copy_of(VGG16, "--detector=vgg16", FLAG, weights)
    network = torchvision.models.vgg16(weights=None)
    network.load_state_dict(found.tensors())
    network.classifier[-1] = torch.nn.Identity()
    network = network.eval().requires_grad_(False).to(device)
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def preprocess(images: Tensor) -> Tensor:
        return (resized(with_colour(images.to(device)), 224, how) / 255 - mean) / std

    description = {"name": "vgg16", "sha256": found.sha256} | seen_at(224, how)
    return NetworkDetector(network, preprocess, 4096, 32, description)


Make = Callable[[Path | None, str, torch.device], Detector]


class Kind(NamedTuple):
    """An entry of the table."""

    make: Make
    about: str  # one line for a list of choices


def _random(weights: Path | None, how: str, device: torch.device) -> Detector:
    return RandomProjection(how, device)


DETECTORS: dict[str, Kind] = {
    "inception": Kind(Inception.load, "TensorFlow's Inception-v3 (torch-fidelity); what published FIDs use"),
    "vgg16": Kind(_vgg16, "torchvision's VGG16, 4096 features"),
    "random": Kind(_random, "a fixed random projection of pixels; needs nothing, means little"),
}


def make_detector(name: str, weights: Path | None, how: str, device: torch.device) -> Detector:
    """A detector of the table.

    Args:
        weights: the user's own copy of its weights; None: cached, or fetched.
        how: of `resizing.FILTERS`.

    Raises:
        UserError: no such detector, or weights that can't be had.
    """
    if name not in DETECTORS:
        raise UserError(f"--detector={name} is unknown; there are {', '.join(DETECTORS)}.{nearest(name, DETECTORS)}")
    if how not in FILTERS:
        raise UserError(f"--filter={how} is unknown; there are {', '.join(FILTERS)}.{nearest(how, FILTERS)}")
    if weights is not None and name == "random":
        raise UserError(f"{FLAG}={weights}: --detector=random has no weights; leave it out")
    return DETECTORS[name].make(weights, how, device)
