"""From a snapshot to a generator, and from images to the features it is conditioned on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from stylegan2_icgan.extractors.extractor import Extractor
from stylegan2_icgan.features import restore_extractor
from stylegan2_icgan.systems import PAIRED, SYSTEMS
from torch_utils import custom_ops
from torch_utils.command_line import UserError
from torch_utils.images import BLACK, WHITE, load_image
from torch_utils.misc import keep_large_buffers, pick_device
from training.checkpoint import Recipe, Snapshot, load_snapshot
from training.condition import Exemplars
from training.config import from_json
from training.randomness import seed_everything
from training.system import System


def make_system(recipe: Recipe, seed: int) -> System:
    """Networks with fresh weights drawn from `seed`, phases and optimisers, ready to train."""
    seed_everything(seed)
    kind = SYSTEMS[recipe.system]
    options = from_json(kind.options, recipe.options, "options")
    networks = {name: make(options, recipe.shape) for name, make in kind.networks.items()}
    system: System = kind.build(options, networks)
    return system


@dataclass(frozen=True)
class Model:
    """A snapshot in use; the network is built when it is first asked for, so that flags can be checked before."""

    path: Path
    snapshot: Snapshot
    device: torch.device
    _extractors: dict[Path | None, Extractor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def recipe(self) -> Recipe:
        return self.snapshot.recipe

    @property
    def exemplars(self) -> Exemplars:
        return self.snapshot.exemplars

    @cached_property
    def generator(self) -> torch.nn.Module:
        """The average of `G`: float32, eval mode, no gradients.

        Raises:
            UserError: weights that do not fit what the file says it is, or native ops that can't be had.
        """
        custom_ops.prepare(self.device)
        kind = SYSTEMS[self.recipe.system]
        try:
            options = from_json(kind.options, self.recipe.options, f"--network={self.path}")
            generator = kind.networks["G"](options, self.recipe.shape)
            generator.load_state_dict(self.snapshot.networks["G_ema"])
        except (RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"--network={self.path}: its weights do not fit its own description ({reason})") from None
        return generator.eval().requires_grad_(False).to(self.device)

    def extractor(self, weights: Path | None = None) -> Extractor:
        """What makes its features, on its device; loaded once.

        Args:
            weights: a local file; None: where its weights are usually found.

        Raises:
            UserError: weights that can't be had, or are not the model's.
        """
        if weights not in self._extractors:
            stored = self.exemplars
            self._extractors[weights] = restore_extractor(
                stored.extractor, stored.extractor_state, weights, self.device
            )
        return self._extractors[weights]

    def features(self, images: Sequence[Path], weights: Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """h of images, by the extractor the model was trained with.

        Returns:
            float32 [N, h_dim], and the images as the extractor saw them, uint8 [N, C, H, W].

        Raises:
            UserError: a model without instances, a file that is no image, other weights than the model's.
        """
        if not self.exemplars.extractor:
            raise UserError("--instance-images: this model is not conditioned on instances; leave it out")
        extractor = self.extractor(weights)
        pixels = self.pixels(images, "--instance-images")
        return extractor(pixels).cpu(), pixels

    def pixels(self, images: Sequence[Path], flag: str) -> torch.Tensor:
        """Images cropped and resized as the model's data set was; uint8 [N, C, R, R].

        Raises:
            UserError: a file that is no image; it and the flag are named.
        """
        shape = self.recipe.shape
        how = self.exemplars.extractor.get("images", {})  # as the data set was converted; defaults where it isn't said
        transform = how.get("transform", "center-crop")
        try:
            loaded = [
                load_image(
                    path,
                    resolution=shape.img_resolution,
                    channels=shape.img_channels,
                    transform="center-crop" if transform == "none" else transform,
                    resize_filter=how.get("filter", "lanczos"),
                    pad_color=tuple(how.get("pad_color", BLACK)),
                    background=tuple(how.get("background", WHITE)),
                )
                for path in images
            ]
        except UserError as error:
            raise UserError(f"{flag}: {error}; expected image files") from None
        return torch.from_numpy(np.stack(loaded))


def open_model(path: str | Path, device: str, ops: str) -> Model:
    """The model in a snapshot, for a script: this process is set up for it first.

    Args:
        device: 'auto', 'cpu', 'cuda' or 'mps'.
        ops: 'auto', 'native' or 'ref'; native ones are built with the network, when flags have been checked.

    Raises:
        UserError: a device that is not there, or as `load_model`.
    """
    keep_large_buffers()
    custom_ops.set_mode(ops)
    return load_model(path, pick_device(device))


def load_model(path: str | Path, device: torch.device, translator: bool = False) -> Model:
    """The model in a snapshot.

    Args:
        translator: whether one is wanted that translates images, and not one that makes them of noise.

    Raises:
        UserError: missing, damaged or foreign file, a system this version does not have, or the other kind of model.
    """
    if Path(path).suffix == ".pkl":
        raise UserError(
            f"--network={path} is a pickle, which could execute anything; make a snapshot of it first: python -m "
            f"stylegan2_icgan.convert {path} {Path(path).with_suffix('.pt')}"
        )
    snapshot = load_snapshot(path)
    if snapshot.recipe.system not in SYSTEMS:
        there = ", ".join(SYSTEMS)
        raise UserError(f"--network={path} is of system {snapshot.recipe.system!r}; this version has {there}")
    system = snapshot.recipe.system
    if translator and system not in PAIRED:
        raise UserError(
            f"--network={path} is of system {system!r}, which makes images of noise; expected one of "
            f"{', '.join(sorted(PAIRED))}, or generate.py"
        )
    if not translator and system in PAIRED:
        raise UserError(f"--network={path} is of system {system!r}, which translates images; use translate.py")
    return Model(Path(path), snapshot, device)
