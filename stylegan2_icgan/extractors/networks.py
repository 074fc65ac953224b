"""Pretrained networks as extractors: their pooled output, at unit length, is the instance feature."""

from pathlib import Path
from typing import Any, Self

import torch

from stylegan2_icgan.extractors import resnets, timm_networks
from stylegan2_icgan.extractors.extractor import FLAG, REMEDY, normalise, with_channels
from stylegan2_icgan.extractors.preprocessing import Preprocessing
from torch_utils.command_line import UserError
from torch_utils.float32 import exact_float32
from torch_utils.published import Download, HubFile, published_weights
from torch_utils.weights import Weights, given_weights, one_line

BATCH_AT_224 = {"cpu": 64, "cuda": 256}  # images a call; fewer where they are larger


class NetworkExtractor:
    """A network, what comes before it, and the JSON that says how to have both again.

    It computes in float32 on every device; on CUDA TF32 is switched off for it, so that features made on one machine
    stay close to those made on another.

    Args:
        description: see `Extractor`; with `preprocessing` as JSON, and of the weights their file name, `origin` and
            `sha256`.
        network: float32 [N, C, H, W] -> [N, h_dim].
    """

    def __init__(
        self, description: dict[str, Any], network: torch.nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> None:
        self.description, self.preprocessing, self.device = description, preprocessing, device
        self.network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.state: dict[str, torch.Tensor] = {}

    @property
    def h_dim(self) -> int:
        return int(self.description["h_dim"])

    @property
    def batch(self) -> int:
        height, width = self.preprocessing.size
        return max(1, BATCH_AT_224.get(self.device.type, 64) * 224**2 // max(height * width, 224**2))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 1 or 3, H, W] on any device -> float32 [N, h_dim] on the network's, rows of unit length."""
        x = self.preprocessing(with_channels(images.to(self.device), len(self.preprocessing.mean)))
        return normalise(self._pooled(x))

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        with exact_float32():
            return self.network(x.contiguous(memory_format=torch.channels_last)).float()

    @classmethod
    def make(cls, name: str, weights: Path | None, device: torch.device) -> Self:
        """The extractor `name`: one of `resnets`, or `timm:NAME`; with published weights, or those in a file.

        Raises:
            UserError: no such network, or weights that are missing, damaged, another network's or not numbers.
        """
        found = _weights(name, _published(name), REMEDY) if weights is None else given_weights(weights, FLAG)
        network, preprocessing, notes = _family(name).build(name, found)
        description = {
            "name": name,
            "h_dim": 0,
            "weights": found.path.name,
            "origin": found.origin,
            "sha256": found.sha256,
            "precision": "float32",
            "preprocessing": preprocessing.json(),
        }
        extractor = cls(description | notes, network, preprocessing, device)
        extractor.description["h_dim"] = _width(extractor, found)
        return extractor

    @classmethod
    def restore(cls, description: dict[str, Any], weights: Path | None, device: torch.device) -> Self:
        """The extractor of a description, with the very weights it was made with.

        Raises:
            UserError: the weights are other ones, or not to be had.
        """
        name = description["name"]
        recorded = description.get("sha256", "")
        expected = recorded or _published(name).hash_prefix  # the first stores had no hash of published weights
        if weights is not None:
            found = given_weights(weights, FLAG)
        elif description.get("origin", "file" if recorded else "published") == "file":
            raise UserError(
                f"this model's instances were made with the weights file {description['weights']} (sha256 "
                f"{expected[:12]}...); give it with --extractor-weights=FILE"
            )
        else:
            copy = f"give a copy of {description['weights']} (sha256 {expected[:12]}...) with {FLAG}=FILE"
            found = _weights(name, _published(name, description.get("origin", "")), copy)
        if not found.sha256.startswith(expected):
            raise UserError(
                f"{found.label} is not the file the instances were made with: expected {description['weights']} "
                f"(sha256 {expected[:12]}...), given {found.sha256[:12]}...; give that one with "
                "--extractor-weights=FILE"
            )
        network, preprocessing, _ = _family(name).build(name, found)
        if "preprocessing" in description:  # timm may have changed its mind since
            preprocessing = Preprocessing.from_json(description["preprocessing"])
        return cls(description, network, preprocessing, device)


def _family(name: str) -> Any:
    """The module that knows this kind of network."""
    return timm_networks if name.startswith(timm_networks.PREFIX) else resnets


def _published(name: str, origin: str = "") -> HubFile | Download:
    """Where published weights are; of a repository the commit that `origin` names."""
    if name.startswith(timm_networks.PREFIX):
        return timm_networks.published(name, origin.partition("@")[2] or "main")
    return resnets.published(name)


def _weights(name: str, source: HubFile | Download, remedy: str) -> Weights:
    return published_weights(source, f"--extractor={name}", FLAG, remedy)


def _width(extractor: NetworkExtractor, weights: Weights) -> int:
    """h_dim, from one black image.

    Raises:
        UserError: the network can't take images of its size, gives no pooled rows, or no numbers.
    """
    preprocessing = extractor.preprocessing
    black = torch.zeros(1, len(preprocessing.mean), *preprocessing.size, dtype=torch.uint8, device=extractor.device)
    name = extractor.description["name"]
    with torch.no_grad():
        try:
            output = extractor._pooled(preprocessing(black))
        except (RuntimeError, AssertionError, ValueError) as error:
            side = "x".join(map(str, preprocessing.size))
            raise UserError(f"--extractor={name} can't take images of {side} pixels: {one_line(error)}") from None
    if output.ndim != 2:
        raise UserError(f"--extractor={name} gives {list(output.shape)} an image; expected a pooled row. Use another")
    if not output.isfinite().all():
        raise UserError(f"{weights.label}: the network gives values that are not finite; get it again")
    return output.shape[1]
