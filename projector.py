"""Project images into the styles w of a StyleGAN2 model: find what it would make them of.

\b
    python projector.py --network=runs/00000-photos-instance/network-snapshot-000200.pt --target a.png b.png
    python projector.py --network=... --target a.png --space=w+ --steps=500 --video
    python projector.py --network=... --target a.png --instance-feats=photos.instances/features.npy --row=7
    python generate.py --network=... --projected-w=out/projected_w.npz
"""

import sys
from pathlib import Path
from typing import Any

import click

from stylegan2_icgan.projection.job import project
from stylegan2_icgan.projection.options import Inputs, Options, SearchOptions, check
from stylegan2_icgan.using.flags import actually_given, take
from torch_utils.command_line import Command, Ranges, Words, dataclass_options


@click.command(cls=Command, help=__doc__)
@click.option("--network", type=Path, required=True, help="Snapshot written by train.py.", metavar="FILE")
@click.option("--target", "targets", cls=Words, type=Path, required=True, help="Images to project.", metavar="FILE ...")
@click.option("--class", "labels", type=Ranges(), help="Class of all targets, or one each.", metavar="0,5-9")
@click.option("--rows", "--row", "rows", type=Ranges(), help="Row of all targets, or one each.", metavar="0,5-9")
@click.option("--lpips-weights", cls=Words, type=Path, help="Local VGG16 and LPIPS heads.", metavar="FILE ...")
@dataclass_options(Options, SearchOptions)
def main(**words: Any) -> None:
    given = actually_given(words)
    inputs, search = take(Inputs, given), take(SearchOptions, given)
    check(given, search)
    click.echo(project(inputs, search, lambda line: click.echo(line, err=True)))


if __name__ == "__main__":
    sys.exit(main())
