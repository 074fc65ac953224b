"""Images of one model, always made the same way: one truncation, one kind of noise, one number of images at a time."""

import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch

from stylegan2_icgan.conditioning import Rows
from stylegan2_icgan.models import Model
from stylegan2_icgan.using.flags import CENTER_DRAWS, Flags
from torch_utils.command_line import UserError
from training.condition import Condition
from training.randomness import seed_everything
from training.sampling import render_styles, sample_images, z_from_seeds

CENTER_BATCH = 512


class Point(NamedTuple):
    """What makes an image: noise, and the place of its condition in a table of rows."""

    seed: int
    row: int

    def name(self, table: Rows) -> str:
        """For file names."""
        condition = table.names[self.row]
        return f"{condition}{'-' if condition else ''}seed{self.seed:04d}"


def pair(seeds: Sequence[int], places: Sequence[int], seeds_flag: str, places_flag: str) -> list[Point]:
    """Seeds and places one by one; a single one of either goes with all of the other.

    Raises:
        UserError: several of both, and not as many.
    """
    count = max(len(seeds), len(places))
    if {len(seeds), len(places)} - {1, count}:
        raise UserError(
            f"{seeds_flag} names {len(seeds)} seeds, {places_flag} {len(places)} conditions; expected as many, or one "
            "of either"
        )
    seeds, places = (list(some) * (count // len(some)) for some in (seeds, places))
    return [Point(seed, place) for seed, place in zip(seeds, places, strict=True)]


def has_styles(model: Model) -> bool:
    """Whether its generator maps z to w (StyleGAN); asked of the snapshot, before a network is built."""
    return "mapping.w_avg" in model.snapshot.networks["G_ema"]


def require_styles(model: Model, flag: str) -> None:
    """
    Raises:
        UserError: a model without w.
    """
    if not has_styles(model):
        raise UserError(f"{flag} needs styles w; --network={model.path} is of system {model.recipe.system}, without w")


class Renderer:
    """Noise and conditions -> images.

    Args:
        flags: truncation and noise.
        batch: images a call of the networks. With 1, the bytes of an image depend on its noise and condition alone.
    """

    def __init__(self, model: Model, flags: Flags, batch: int = 1) -> None:
        if flags.trunc_center == "instance":
            require_styles(model, "--trunc-center=instance")
        self.model, self.generator, self.flags, self.batch = model, model.generator, flags, batch
        self.has_styles = has_styles(model)
        self._centers: dict[bytes, torch.Tensor] = {}

    def images(self, table: Rows, points: Sequence[Point]) -> Iterator[torch.Tensor]:
        """uint8 [C, H, W], one for each point."""
        for start in range(0, len(points), self.batch):
            some = points[start : start + self.batch]
            self.seed_noise(some[0].seed, table.names[some[0].row])
            z = z_from_seeds([point.seed for point in some], self.generator.z_dim)
            yield from self.from_latents(z, table.condition[[point.row for point in some]])

    def from_latents(self, z: torch.Tensor, condition: Condition) -> torch.Tensor:
        """uint8 [N, C, H, W] of N rows of noise and condition, in one call."""
        if self.has_styles:
            return self.from_styles(self.styles(z, condition))
        flags = self.flags
        return sample_images(
            self.generator,
            z,
            condition,
            truncation_psi=flags.trunc,
            truncation_cutoff=flags.trunc_cutoff,
            noise_mode=flags.noise_mode,
            batch=len(z),
        )

    def from_styles(self, ws: torch.Tensor) -> torch.Tensor:
        """uint8 [N, C, H, W] of styles [N, num_ws, w_dim], in one call."""
        return render_styles(self.generator, ws, self.flags.noise_mode, batch=len(ws))

    def styles_of(self, table: Rows, point: Point) -> torch.Tensor:
        """Truncated styles of one image, float32 [1, num_ws, w_dim] on the device."""
        return self.styles(z_from_seeds([point.seed], self.generator.z_dim), table.condition[[point.row]])

    def seed_noise(self, seed: int, name: str) -> None:
        """Before each call: what --noise-mode=random draws is a function of these."""
        seed_everything(seed, zlib.crc32(name.encode()))

    @torch.no_grad()
    def styles(self, z: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Truncated styles, float32 [N, num_ws, w_dim] on the device."""
        flags, device = self.flags, next(self.generator.parameters()).device
        z, cond = z.to(device), condition.to(device)
        if flags.trunc == 1 or flags.trunc_center == "global":
            psi = {"truncation_psi": flags.trunc, "truncation_cutoff": flags.trunc_cutoff}
            ws: torch.Tensor = self.generator.mapping(z, cond.c, cond.h, **psi)
            return ws
        centers = torch.cat([self._center(condition[[row]]) for row in range(len(condition))])  # [N, w_dim]
        return truncate(self.generator.mapping(z, cond.c, cond.h), centers, flags.trunc, flags.trunc_cutoff)

    def _center(self, condition: Condition) -> torch.Tensor:
        """The mean w of one condition, float32 [1, w_dim]: a function of it alone."""
        key = condition.c.numpy().tobytes() + condition.h.numpy().tobytes()
        if key not in self._centers:
            self._centers[key] = mean_style(self.generator, condition, self._center_z)
        return self._centers[key]

    @cached_property
    def _center_z(self) -> torch.Tensor:
        return center_noise(self.generator.z_dim)


def center_noise(z_dim: int) -> torch.Tensor:
    """The z that a centre is the mean over, float32 [CENTER_DRAWS, z_dim]: one draw of seed 0."""
    return z_from_seeds([0], CENTER_DRAWS * z_dim).view(CENTER_DRAWS, z_dim)


@torch.no_grad()
def mean_style(generator: torch.nn.Module, condition: Condition, z: torch.Tensor) -> torch.Tensor:
    """The mean over noise z [M, z_dim] of w under one condition, [1, w_dim] on the device."""
    device = next(generator.parameters()).device
    total = torch.zeros(1, generator.w_dim, device=device)
    for some in z.split(CENTER_BATCH):
        cond = condition.repeat_interleave(len(some)).to(device)
        total += generator.mapping(some.to(device), cond.c, cond.h)[:, 0].sum(dim=0)
    return total / len(z)


def truncate(ws: torch.Tensor, center: torch.Tensor, psi: float, cutoff: int | None) -> torch.Tensor:
    """w' = center + psi (w - center) (StyleGAN, arXiv 1812.04948, appendix B), for the first `cutoff` styles.

    Args:
        ws: [N, num_ws, w_dim].
        center: [N, w_dim].
    """
    truncated = center[:, None].lerp(ws[:, :cutoff], psi)
    return torch.cat([truncated, ws[:, truncated.shape[1] :]], dim=1)
