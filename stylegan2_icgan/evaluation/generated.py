"""Images of a model, generated as they are asked for."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch

from metrics.image_sets import ImageSet
from metrics.path_length import slerp
from stylegan2_icgan.evaluation.conditions import Conditions, drawn_from_data
from stylegan2_icgan.evaluation.images import RealImages
from stylegan2_icgan.evaluation.options import Flags
from stylegan2_icgan.models import Model
from stylegan2_icgan.standing import normalised
from torch_utils.command_line import UserError
from training.checkpoint import Recipe
from training.dataset import Draws
from training.randomness import hashed, integers, seed_everything
from training.sampling import sample_images, z_from_seeds

CONDITIONS, NOISE, NOISE_END, BETWEEN = 71, 72, 73, 74  # streams of randomness


class Promised(ImageSet):
    """Images that are still to come: answers what is known of them by the recipe alone.

    Args:
        reference: where conditions may come from.
        has_w: whether the generator maps z to w.
    """

    def __init__(self, recipe: Recipe, flags: Flags, reference: RealImages | None, has_w: bool) -> None:
        shape = recipe.shape
        super().__init__({"resolution": [shape.img_resolution, shape.img_resolution]}, None)
        self._from = reference if drawn_from_data(recipe, flags, reference) else None
        self._of_classes, self._of_instances = shape.c_dim > 0, shape.h_dim > 0 and flags.sampling == "instance"
        self._has_w = has_w

    @property
    def has_paths(self) -> bool:
        return self._has_w

    def classes(self, ids: np.ndarray) -> np.ndarray | None:
        if self._of_classes:
            return ids
        return None if self._from is None else self._from.classes(ids)

    def instances(self, ids: np.ndarray) -> np.ndarray | None:
        return ids if self._of_instances and self._from is not None else None

    def copies(self, count: int) -> "Promised":
        return self


class Generated(ImageSet):
    """What a generator makes of conditions and noise, which are functions of the seed and the number of an image.

    Args:
        model: the snapshot.
        conditions: draws conditions.
        flags: truncation, noise, batch normalisation, images a call.
        per_condition: how many images in a row share a condition.
    """

    def __init__(self, model: Model, conditions: "Conditions", seed: int, flags: Flags, per_condition: int = 1) -> None:
        side = model.recipe.shape.img_resolution
        super().__init__({"path": str(model.path), "resolution": [side, side]}, None)
        self.model, self.conditions, self.seed, self.flags = model, conditions, seed, flags
        self.per_condition = per_condition

    @property
    def has_paths(self) -> bool:
        return bool(self.model.generator.w_dim)

    def normalised(self) -> AbstractContextManager[str | None]:
        """For the length of the block, let batch normalisation do as the flags say; what it does, in words.

        Raises:
            UserError: a choice where there is none, or a batch of one.
        """
        flags = self.flags
        if flags.bn_mode == "batch" and flags.batch == 1:
            raise UserError("--bn-mode=batch --batch=1: one image is no batch to normalise by; expected at least 2")
        how = {"truncation_psi": flags.trunc, "truncation_cutoff": flags.trunc_cutoff}
        return normalised(self.model, flags.bn_mode, self.conditions, flags.batch, **how)

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        return map(self._images, ids)

    def classes(self, ids: np.ndarray) -> np.ndarray | None:
        return self.conditions.classes(self._draws(ids))

    def instances(self, ids: np.ndarray) -> np.ndarray | None:
        return self.conditions.instances(self._draws(ids))

    def copies(self, count: int) -> "Generated":
        return Generated(self.model, self.conditions, self.seed, self.flags, count)

    def _draws(self, ids: np.ndarray) -> Draws:
        position = ids // self.per_condition
        index = integers(len(self.conditions), self.seed, CONDITIONS, position)
        return Draws(index, hashed(self.seed, CONDITIONS, position, 1))

    def _noise(self, ids: np.ndarray, stream: int) -> torch.Tensor:
        """float32 [N, z_dim]"""
        seeds = (hashed(self.seed, stream, ids) >> np.uint64(32)).tolist()
        return z_from_seeds(seeds, self.model.generator.z_dim)

    def _images(self, ids: np.ndarray) -> torch.Tensor:
        """uint8 [N, C, H, W]; made in the batches of all numbers, so that an image never depends on what is asked."""
        size = self.flags.batch
        if self.flags.bn_mode != "batch" and self.flags.noise_mode != "random":
            return torch.cat([self._together(some) for some in np.split(ids, range(size, len(ids), size))])
        batches, at = np.unique(ids // size, return_inverse=True)
        whole = torch.stack([self._together(batch * size + np.arange(size)) for batch in batches])
        return whole[torch.from_numpy(at), torch.from_numpy(ids % size)]

    def _together(self, ids: np.ndarray) -> torch.Tensor:
        """One call of the generator."""
        seed_everything(self.seed, int(ids[0]))  # for --noise-mode=random
        return sample_images(
            self.model.generator,
            self._noise(ids, NOISE),
            self.conditions(self._draws(ids)),
            truncation_psi=self.flags.trunc,
            truncation_cutoff=self.flags.trunc_cutoff,
            noise_mode=self.flags.noise_mode,
            batch=len(ids),
        )

    @torch.no_grad()
    def path_pairs(self, ids: np.ndarray, space: str, full: bool, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
        generator, device = self.model.generator, self.model.device
        cond = self.conditions(self._draws(ids)).to(device)
        ends = [self._noise(ids, stream).to(device) for stream in (NOISE, NOISE_END)]
        at = hashed(self.seed, BETWEEN, ids) / np.float64(2**64) if full else np.zeros(len(ids))
        t = torch.from_numpy(at).float().to(device).unsqueeze(1)
        w_of = partial(generator.mapping, c=cond.c, h=cond.h)
        if space == "z":
            w0, w1 = (w_of(slerp(*ends, place)) for place in (t, t + epsilon))
        else:
            start, end = (w_of(z) for z in ends)
            w0, w1 = (start.lerp(end, place.unsqueeze(2)) for place in (t, t + epsilon))
        images = generator.synthesis(torch.cat([w0, w1]), noise_mode="const", force_fp32=True)
        first, second = ((images.float() + 1) * 127.5).chunk(2)
        return first, second
