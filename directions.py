"""Semantic directions of a model, without labels: strips of images that go along each, and directions.npz.

\b
    python directions.py --network=S.pt --num=5 --seeds=0-3
    python directions.py --network=S.pt --layers=0-3 --strength=8 --instance-images a.png
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from stylegan2_icgan.conditioning import Choice
from stylegan2_icgan.models import open_model
from stylegan2_icgan.using.choosing import chosen_rows
from stylegan2_icgan.using.factorisation import factorise, parse_layers, write_strips
from stylegan2_icgan.using.flags import Flags, actually_given, check_shared, model_flags, rows_flags, take
from stylegan2_icgan.using.image_files import writing_to
from stylegan2_icgan.using.rendering import Renderer, pair, require_styles
from torch_utils.command_line import Command, Ranges, UserError, dataclass_options
from torch_utils.files import atomic_write
from training.config import option


@dataclass(frozen=True)
class Options:
    """The flags of directions.py alone that are one word each."""

    num: int = option(8, "How many directions, the one with the largest effect first.", unit="N")
    strength: float = option(5.0, "How far a strip goes to either side: a length in w.", unit="A")
    steps: int = option(7, "Images of a strip.", unit="N")


@click.command(cls=Command, help=__doc__)
@model_flags
@rows_flags
@click.option("--seeds", type=Ranges(), default="0-3", show_default=True, help="Seeds of the noise z.", metavar="0-3,7")
@click.option("--layers", type=Ranges(), help="Styles that are factorised, and moved.  [default: all]", metavar="0-3")
@dataclass_options(Options)
def main(seeds: list[int], layers: list[int] | None, **words: Any) -> None:
    given = actually_given(words)
    check_shared(given)
    flags, options = take(Flags, given), take(Options, given)
    if options.num < 1 or options.steps < 2 or not 0 < options.strength < math.inf:
        raise UserError(
            f"--num={options.num} --steps={options.steps} --strength={options.strength}: expected 1 direction or more, "
            "2 steps or more, and a strength above 0"
        )
    model = open_model(flags.network, flags.device, flags.ops)
    require_styles(model, "directions.py")
    table = chosen_rows(model, flags, Choice(flags.rows, most=1))
    points = pair(seeds, range(len(table)), "--seeds", "--rows, --instances or the images given")
    renderer = Renderer(model, flags)
    generator = renderer.generator
    if options.num > generator.w_dim:
        raise UserError(f"--num={options.num}: w is {generator.w_dim} wide; expected at most as many directions")
    chosen = parse_layers(layers, generator.num_ws)
    found = factorise(generator.synthesis, chosen, options.num)
    steps = np.linspace(-options.strength, options.strength, options.steps).tolist()
    with writing_to(flags.outdir):
        arrays = {"directions": found.vectors.numpy(), "eigenvalues": found.eigenvalues.numpy(), "layers": chosen}
        with atomic_write(flags.outdir / "directions.npz") as file:
            np.savez(file, **arrays)
        write_strips(renderer, table, points, found, chosen, steps, flags.outdir)
    click.echo(f"{options.num} directions in {flags.outdir}: direction00.png ... and directions.npz")


if __name__ == "__main__":
    sys.exit(main())
