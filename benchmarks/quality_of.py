"""How good is a snapshot, by the measures of the quality table?

    python -m benchmarks.quality_of --network=models/emoji32.pt --data=seen32.zip --unseen=held-out32.zip

The columns are those of benchmarks.quality, in the features of a small classifier of --data.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks.judges import train_classifier
from benchmarks.quality import labelled, tables
from benchmarks.quality_measures import measure
from metrics.lpips import Lpips
from torch_utils.command_line import Command, UserError, Words
from training.checkpoint import load_snapshot


@click.command(cls=Command, help=__doc__)
@click.option("--network", type=Path, required=True, help="Snapshot.")
@click.option("--data", type=Path, required=True, help="Labelled images that it was trained on.")
@click.option("--unseen", type=Path, help="Labelled images of the same classes that it was not trained on.")
@click.option("--lpips-weights", cls=Words, type=Path, help="VGG16 and LPIPS heads, for diversity.", metavar="FILE ...")
def main(network: Path, data: Path, unseen: Path | None, lpips_weights: Sequence[Path]) -> None:
    torch.set_num_threads(1)
    shape = load_snapshot(network).recipe.shape
    dataset, other = labelled(data, unseen)
    lpips = Lpips.load(lpips_weights, torch.device("cpu")) if lpips_weights else None
    if shape.img_resolution != dataset.resolution:
        raise UserError(
            f"--network={network} makes {shape.img_resolution} pixels, --data={data} has {dataset.resolution}; convert "
            "it to as many"
        )
    judge, accuracy = train_classifier(dataset)
    click.echo(f"classifier: {accuracy:.3f} of held-out real images right")
    found = measure(network, dataset, other, judge, lpips)
    click.echo(tables({f"{network.stem}/0": found}, [network.stem]))


if __name__ == "__main__":
    sys.exit(main())
