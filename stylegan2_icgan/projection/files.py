"""projected_w.npz: what was found for each target, and everything that its image is rendered from."""

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan2_icgan.projection.noise_maps import Maps, map_of, maps_in_place, own_maps
from torch_utils.command_line import UserError
from torch_utils.files import atomic_write
from training.condition import Condition
from training.sampling import render_styles

DAMAGED = (zipfile.BadZipFile, zlib.error)
NOISE = "noise/"  # before the name of a noise buffer


@dataclass(frozen=True)
class Projection:
    """What was found for N targets.

    Args:
        w: float32 [N, num_ws, w_dim].
        condition: c and h, [N]; widths 0 where they are not known.
        z: float32 [N, z_dim] that w is the style of; None: w was searched itself.
        maps: noise maps, float32 [N, r, r] each, by the name of their buffer; empty: the network's own.
        options: JSON of how it was found.
        network_sha256: of the snapshot; '' if it is not known.
    """

    w: Tensor
    condition: Condition
    z: Tensor | None = None
    maps: Maps = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    network_sha256: str = ""

    def __len__(self) -> int:
        return len(self.w)


def save_projection(path: Path, projection: Projection) -> None:
    """Write a .npz, whole or not at all; the same bytes for the same content."""
    arrays = {"w": projection.w, "c": projection.condition.c, "h": projection.condition.h}
    arrays |= {} if projection.z is None else {"z": projection.z}
    arrays |= {f"{NOISE}{name}": noise for name, noise in projection.maps.items()}
    words = {"options": json.dumps(projection.options), "network_sha256": projection.network_sha256}
    with atomic_write(path) as file:
        np.savez(file, **{name: value.numpy() for name, value in arrays.items()}, **words)


def read_projection(path: Path, flag: str = "--projected-w") -> Projection:
    """Read what `save_projection` wrote, or any .npz with `w`, [N, num_ws, w_dim].

    Raises:
        UserError: missing, damaged, or without such a w.
    """
    where = f"{flag}={path}"
    if not path.is_file():
        raise UserError(f"{where} does not exist; expected a projected_w.npz of projector.py")
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, *DAMAGED):  # a .npy is no context
        raise UserError(f"{where} can't be read as .npz: damaged, or another file; run projector.py again") from None
    w = arrays.pop("w", np.empty(0))
    w = w[None] if w.ndim == 2 else w
    if w.dtype.kind != "f" or w.ndim != 3 or not len(w):
        there = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"{where} has no floating-point w [N, num_ws, w_dim] (beside it: {there}); see projector.py")
    if not np.isfinite(w).all():
        raise UserError(f"{where} has NaN or infinite values in w; expected finite styles, run projector.py again")
    words = {name: str(arrays.pop(name, "")) for name in ("options", "network_sha256")}
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items() if array.dtype.kind == "f"}
    short = next((name for name, tensor in tensors.items() if tensor.ndim == 0 or len(tensor) != len(w)), None)
    if short is not None:
        raise UserError(
            f"{where}: {short} is {list(tensors[short].shape)}, w has {len(w)} rows; run projector.py again"
        )
    empty = torch.zeros(len(w), 0)
    return Projection(
        w=torch.from_numpy(w).float(),
        condition=Condition(tensors.get("c", empty), tensors.get("h", empty)),
        z=tensors.get("z"),
        maps={name.removeprefix(NOISE): tensor for name, tensor in tensors.items() if name.startswith(NOISE)},
        options=_json(words["options"]),
        network_sha256=words["network_sha256"],
    )


def _json(text: str) -> dict[str, Any]:
    """Ours is an object; an array `options` of another program, which says nothing about the images, is left out."""
    try:
        options = json.loads(text or "{}")
    except ValueError:
        return {}
    return options if isinstance(options, dict) else {}


def check_fits(generator: torch.nn.Module, projection: Projection, flag: str = "--projected-w") -> None:
    """Refuse what was found for a network of another shape.

    Raises:
        UserError: other styles or noise maps; both shapes are named.
    """
    remedy = "give the snapshot it was projected with"
    if projection.network_sha256:
        remedy += f" (sha256 {projection.network_sha256[:12]}...)"
    expected = [generator.num_ws, generator.w_dim]
    if list(projection.w.shape[1:]) != expected:
        raise UserError(f"{flag} holds styles {list(projection.w.shape[1:])}, this model takes {expected}; {remedy}")
    own = own_maps(generator)
    for name, noise in projection.maps.items():
        if name not in own or own[name].shape != noise.shape[1:]:
            there = list(own[name].shape) if name in own else "none"
            raise UserError(
                f"{flag} holds a noise map {name} {list(noise.shape[1:])}, this model has {there}; {remedy}"
            )


def render(generator: torch.nn.Module, projection: Projection, noise_mode: str = "const") -> Tensor:
    """The images, uint8 [N, C, R, R] on the CPU, one by one: the same bytes whenever the same network renders them.

    Args:
        noise_mode: const takes the noise maps that were found, or the network's own where none were searched.
    """
    device = next(generator.parameters()).device
    images = []
    for row in range(len(projection)):
        maps = {name: noise.to(device) for name, noise in map_of(projection.maps, row).items()}
        with maps_in_place(generator, maps):
            images.append(render_styles(generator, projection.w[row : row + 1], noise_mode))
    return torch.cat(images)
