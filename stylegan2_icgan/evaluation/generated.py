"""Images of a model, generated as they are asked for."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from metrics.image_sets import ImageSet
from metrics.path_length import slerp
from stylegan2_icgan.evaluation.conditions import Conditions
from stylegan2_icgan.evaluation.options import Flags
from stylegan2_icgan.models import Model
from training.dataset import Draws
from training.randomness import hashed, integers, seed_everything
from training.sampling import sample_images, z_from_seeds

CONDITIONS, NOISE, NOISE_END, BETWEEN = 71, 72, 73, 74  # streams of randomness
BATCH = 32  # images a call of the generator; detectors take multiples of it


class Generated(ImageSet):
    """What a generator makes of conditions and noise, which are functions of the seed and the number of an image.

    Args:
        model: the snapshot.
        conditions: draws conditions.
        flags: truncation and noise.
        per_condition: how many images in a row share a condition.
    """

    def __init__(self, model: Model, conditions: "Conditions", seed: int, flags: Flags, per_condition: int = 1) -> None:
        super().__init__({"path": str(model.path)}, None)
        self.model, self.conditions, self.seed, self.flags = model, conditions, seed, flags
        self.per_condition = per_condition

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
        parts = []
        for some in np.split(ids, range(BATCH, len(ids), BATCH)):
            seed_everything(self.seed, int(some[0]))  # for --noise-mode=random
            images = sample_images(
                self.model.generator,
                self._noise(some, NOISE),
                self.conditions(self._draws(some)),
                truncation_psi=self.flags.trunc,
                truncation_cutoff=self.flags.trunc_cutoff,
                noise_mode=self.flags.noise_mode,
                batch=BATCH,
            )
            parts.append(images)
        return torch.cat(parts)

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
