"""The table of extractors: f_phi, an image -> its instance feature h, float32 [h_dim] of unit length (IC-GAN sec. 3).

An extractor is one entry of `EXTRACTORS`, or `timm:NAME` for any image network of timm. What it needs to work again
elsewhere is its JSON `description` and its `state`; both are kept in the instance store's manifest and in snapshots.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from stylegan2_icgan.extractors import timm_networks
from stylegan2_icgan.extractors.extractor import Extractor, normalise
from stylegan2_icgan.extractors.networks import NetworkExtractor
from stylegan2_icgan.extractors.pca import PcaExtractor
from torch_utils.command_line import UserError, nearest
from training.dataset import ImageFolderDataset

__all__ = [
    "ALIASES", "EXTRACTORS", "Extractor", "canonical_name", "check_extractor_name", "default_extractor",
    "extractor_choices", "fit_extractor", "made_alike", "normalise", "restore_extractor",
]  # fmt: skip

# DINOv2 was trained at 518 pixels; at 224 an image takes 256 patches in place of 1369. The weights of CLIP need the
# network with the quick GELU that they were trained with; its features are 768 wide, before the projection.
ALIASES = {
    "dinov2": "timm:vit_small_patch14_reg4_dinov2.lvd142m@224",
    "clip": "timm:vit_base_patch32_clip_quickgelu_224.openai",
}
# Keys of a description that say where weights came from, or what was noted of them, and change no number.
PROVENANCE = ("weights", "file", "origin", "licence", "dropped")
SMALL_SIDE = 32  # pixels: up to here pixels themselves say enough

Make = Callable[[str, ImageFolderDataset, Path | None, torch.device], Extractor]
Restore = Callable[[dict[str, Any], dict[str, torch.Tensor], Path | None, torch.device], Extractor]


class Kind(NamedTuple):
    """An entry of the table: how an extractor is made for a data set, and how it is had again."""

    make: Make
    restore: Restore
    about: str  # one line for a list of choices


def _make_pca(name: str, dataset: ImageFolderDataset, weights: Path | None, device: torch.device) -> Extractor:
    return PcaExtractor.fit(dataset, weights, device)


def _restore_pca(
    description: dict[str, Any], state: dict[str, torch.Tensor], weights: Path | None, device: torch.device
) -> Extractor:
    return PcaExtractor.restore(description, state, device)


def _make_network(name: str, dataset: ImageFolderDataset, weights: Path | None, device: torch.device) -> Extractor:
    return NetworkExtractor.make(name, weights, device)


def _restore_network(
    description: dict[str, Any], state: dict[str, torch.Tensor], weights: Path | None, device: torch.device
) -> Extractor:
    return NetworkExtractor.restore(description, weights, device)


def _make_given(name: str, dataset: ImageFolderDataset, weights: Path | None, device: torch.device) -> NoReturn:
    raise ValueError("the features of a file are there already: open them with given_features.FeatureFile")


def _restore_given(
    description: dict[str, Any], state: dict[str, torch.Tensor], weights: Path | None, device: torch.device
) -> NoReturn:
    raise UserError(
        f"this model's instances are the rows of the file {description['file']}, so features of other images can't be "
        "made here; give rows that you made alike with --instance-feats=FILE"
    )


# fmt: off
EXTRACTORS: dict[str, Kind] = {
    "pca":         Kind(_make_pca, _restore_pca, "whitened pixels, fitted to the data; for small or grey images"),
    "dinov2":      Kind(_make_network, _restore_network, "DINOv2 ViT-S/14 at 224 pixels (timm); for photographs"),
    "clip":        Kind(_make_network, _restore_network, "the image tower of CLIP ViT-B/32 (timm)"),
    "resnet50":    Kind(_make_network, _restore_network, "torchvision's ResNet-50 for ImageNet"),
    "swav":        Kind(_make_network, _restore_network, "SwAV's ResNet-50, from a file"),
    "resnet50-lt": Kind(_make_network, _restore_network, "a ResNet-50 trained on long-tailed data, from a file"),
    "file":        Kind(_make_given, _restore_given, "your own features, .npy or .npz"),
}
# fmt: on
TIMM = Kind(_make_network, _restore_network, "any image network of timm; timm:NAME@SIDE for another size")


def extractor_choices() -> str:
    """'pca, dinov2, ..., or timm:NAME', for help and errors."""
    return f"{', '.join(EXTRACTORS)}, or timm:NAME for any image network of timm"


def canonical_name(name: str) -> str:
    """The name a description carries: what an alias stands for, anything else as it is."""
    return ALIASES.get(name, name)


def check_extractor_name(name: str) -> None:
    """Whether there is such an extractor. Cheap: timm is imported only when the name begins with `timm:`.

    Raises:
        UserError: there is none; the nearest match is offered.
    """
    if name.startswith(timm_networks.PREFIX):
        timm_networks.check(name)
    elif name not in EXTRACTORS:
        raise UserError(
            f"--extractor={name} is unknown; there are {extractor_choices()}.{nearest(name.lower(), EXTRACTORS)}"
        )


def default_extractor(dataset: ImageFolderDataset) -> tuple[str, str]:
    """Which extractor to take for new features when nobody says, and why."""
    if dataset.num_channels == 1:
        return "pca", "the images are grey"
    if dataset.resolution <= SMALL_SIDE:
        return "pca", f"the images are {dataset.resolution} pixels a side, small enough to compare as they are"
    try:
        timm_networks.import_timm("dinov2")
    except UserError:
        return "pca", "timm is not installed; with it (pip install timm) DINOv2 features are taken for photographs"
    return "dinov2", "the images are in colour and timm is installed"


def fit_extractor(name: str, dataset: ImageFolderDataset, weights: Path | None, device: torch.device) -> Extractor:
    """An extractor for a data set: fitted to it, or with its published or local weights.

    Raises:
        UserError: an unknown name, or weights that can't be had.
        ValueError: `file`, which is no extractor of images.
    """
    check_extractor_name(name)
    return EXTRACTORS.get(name, TIMM).make(canonical_name(name), dataset, weights, device)


def restore_extractor(
    description: dict[str, Any], state: dict[str, torch.Tensor], weights: Path | None, device: torch.device
) -> Extractor:
    """The extractor a store or snapshot was made with.

    Raises:
        UserError: there is no such extractor here, or its weights are missing or others.
    """
    name = description["name"]
    check_extractor_name(name)
    return EXTRACTORS.get(name, TIMM).restore(description, state, weights, device)


def made_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions give the same features: the same weights and choices, wherever the weights came from."""
    return _numbers(one) == _numbers(other)


def _numbers(description: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key not in PROVENANCE}
