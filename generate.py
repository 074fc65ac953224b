"""Generate images with a trained model: a row per condition, a column per seed, and a sheet of all.

\b
    python generate.py --network=runs/00000-digits-instance-tiny-batch16/network-snapshot-000036.pt --seeds=0-7
    python generate.py --network=... --instance-feats=datasets/digits.instances/features.npy --rows=0,5-9
    python generate.py --network=... --instance-images a.png b.png --trunc=0.7 --trunc-center=instance
    python generate.py --network=... --instances=exemplars:0-31 --mix 0:0.3,5:0.7
    python generate.py --network=... --num=50000 --outzip=samples.zip --batch=32
"""

import sys
from typing import Any

import click

from stylegan2_icgan.models import open_model
from stylegan2_icgan.using.flags import Flags, actually_given, model_flags, rows_flags, take
from stylegan2_icgan.using.generation import Options, Wanted, check, generate
from torch_utils.command_line import Command, Ranges, Words, dataclass_options


@click.command(cls=Command, help=__doc__)
@model_flags
@rows_flags
@click.option("--mix", cls=Words, help="Mix the features of rows: 0:0.3,5:0.7 is one condition.", metavar="MIX ...")
@click.option("--seeds", type=Ranges(), help="Seeds of the noise z.  [default: 0-7]", metavar="0-3,7")
@dataclass_options(Options)
def main(**words: Any) -> None:
    given = actually_given(words)
    check(given)
    flags, wanted = take(Flags, given), take(Wanted, given)
    model = open_model(flags.network, flags.device, flags.ops)
    click.echo(generate(model, flags, wanted, lambda line: click.echo(line, err=True)))


if __name__ == "__main__":
    sys.exit(main())
