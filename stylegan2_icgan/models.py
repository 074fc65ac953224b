"""From a snapshot to a generator, and from images to the features it is conditioned on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stylegan2_icgan.features import restore_extractor
from stylegan2_icgan.systems import SYSTEMS
from torch_utils.command_line import UserError
from torch_utils.images import BLACK, WHITE, load_image
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
    """A trained generator (the average of `G`, float32, eval mode) and what it came with."""

    generator: torch.nn.Module
    recipe: Recipe
    exemplars: Exemplars
    cur_nimg: int

    def features(self, images: Sequence[Path], weights: Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """h of images, by the extractor the model was trained with.

        Returns:
            float32 [N, h_dim], and the images as the extractor saw them, uint8 [N, C, H, W].

        Raises:
            UserError: a model without instances, a file that is no image, other weights than the model's.
        """
        if not self.exemplars.extractor:
            raise UserError("--instance-images: this model is not conditioned on instances; leave it out")
        shape, device = self.recipe.shape, next(self.generator.parameters()).device
        extractor = restore_extractor(self.exemplars.extractor, self.exemplars.extractor_state, weights, device)
        how = self.exemplars.extractor["images"]  # as the data set was converted; its defaults where it does not say
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
            raise UserError(f"--instance-images: {error}; expected image files") from None
        pixels = torch.from_numpy(np.stack(loaded))
        return extractor(pixels).cpu(), pixels


def load_model(path: str | Path, device: torch.device) -> Model:
    """The generator of a snapshot.

    Raises:
        UserError: missing, damaged or foreign file; weights that do not fit what the file says it is.
    """
    snapshot: Snapshot = load_snapshot(path)
    recipe = snapshot.recipe
    if recipe.system not in SYSTEMS:
        raise UserError(f"--network={path} is of system {recipe.system!r}; this version has {', '.join(SYSTEMS)}")
    kind = SYSTEMS[recipe.system]
    try:
        options = from_json(kind.options, recipe.options, f"--network={path}")
        generator = kind.networks["G"](options, recipe.shape)
        generator.load_state_dict(snapshot.networks["G_ema"])
    except (RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--network={path}: its weights do not fit its own description ({reason})") from None
    generator.eval().requires_grad_(False).to(device)
    return Model(generator, recipe, snapshot.exemplars, snapshot.cur_nimg)
