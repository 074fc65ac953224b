"""How long it takes to write the training state of a model, and to go on from it.

    python -m benchmarks.resume --cfg=paper256 --resolution=256

Networks with fresh weights that have taken no step but whose optimisers have moments, as after one. What train.py
does besides (importing torch, listing the data) takes as long for a run that begins.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from stylegan2_icgan.models import make_system
from stylegan2_icgan.options import resolve
from stylegan2_icgan.presets import PRESETS
from torch_utils.command_line import Command, NearestChoice
from training.checkpoint import Recipe, read_state, restore_state, save_state
from training.config import to_json
from training.ema import Ema
from training.system import DataShape, Stateful, System


def members_of(recipe: Recipe) -> tuple[System, dict[str, Stateful]]:
    """A system as a run begins with it, and what joins its state."""
    system = make_system(recipe, 0)
    loop = recipe.training_options["loop"]
    ema = Ema(system.networks["G"], loop["ema_kimg"], loop["ema_rampup"], average_buffers=system.average_buffers)
    return system, {**system.stateful(), "G_ema": ema}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command(cls=Command, help=__doc__)
@click.option("--cfg", type=NearestChoice(list(PRESETS)), default="paper256", show_default=True, help="Preset.")
@click.option("--resolution", type=int, default=256, show_default=True, help="Of the images.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Times are the least of so many.")
def main(cfg: str, resolution: int, repeats: int) -> None:
    options = resolve(cfg, {"cond": "instance"}, resolution)
    shape = DataShape(resolution, 3, 0, 512)
    recipe = Recipe(options.system, to_json(options.model), shape, options.json())
    system, members = members_of(recipe)
    for name, optimizer in system.optimizers.items():
        for parameter in system.networks[name].parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    count = sum(p.numel() for network in system.networks.values() for p in network.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training-state-000000.pt"
        writing = min(seconds(lambda: save_state(path, members, {})) for _ in range(repeats))
        _, fresh = members_of(recipe)
        reading = min(seconds(lambda: restore_state(read_state(path), fresh)) for _ in range(repeats))
        size = path.stat().st_size / 2**20
    click.echo(
        f"{cfg} at {resolution} px: {count / 1e6:.1f} million parameters, state of {size:.0f} MiB; written in "
        f"{writing:.2f} s, read and restored in {reading:.2f} s (wall time, least of {repeats})"
    )


if __name__ == "__main__":
    sys.exit(main())
