"""Pairs to translate between, made of real images: edges (A) and the image they are of (B).

    python benchmarks/pairs.py --outdir=/tmp/pairs
    python train.py --cfg=csgan-tiny --data=/tmp/pairs/A.zip --data-b=/tmp/pairs/B.zip

One image in five is held out: A-test.zip, B-test.zip. Edges are the size of the gradient by Sobel's filters, 0 to 255.
"""

import sys
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from torch_utils.command_line import Command, UserError
from torch_utils.files import atomic_write
from torch_utils.images import encode_png
from training.dataset import ImageFolderDataset
from training.partial_zip import DatasetWriter
from training.randomness import permutation

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = 5  # one image in so many


def sobel(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 1, H, W] -> uint8 [N, 1, H, W], |gradient| / 4, clipped; the border is repeated."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([across, across.t()]).unsqueeze(1)
    gradient = F.conv2d(F.pad(images.float(), (1, 1, 1, 1), mode="replicate"), kernels)
    return (gradient.square().sum(dim=1, keepdim=True).sqrt() / 4).round().clamp(0, 255).to(torch.uint8)


def write_images(path: Path, images: torch.Tensor) -> None:
    """A data set of uint8 [N, 1, H, W]."""
    with atomic_write(path) as stream:
        writer = DatasetWriter(stream)
        for image in images:
            writer.add(encode_png(Image.fromarray(image[0].numpy())))
        writer.finish({"labels": None})


@click.command(cls=Command, help=__doc__)
@click.option("--data", type=Path, default=ROOT / "datasets" / "digits.zip", help="Grey images.", metavar="ZIP")
@click.option(
    "--outdir", type=Path, required=True, help="Where A.zip, B.zip and both tests are written.", metavar="DIR"
)
def main(data: Path, outdir: Path) -> None:
    dataset = ImageFolderDataset(data)
    if dataset.num_channels != 1:
        raise UserError(f"--data={data} has colour; expected grey images, such as datasets/digits.zip")
    outdir.mkdir(parents=True, exist_ok=True)
    order = permutation(len(dataset), 0)
    held_out, seen = np.split(order, [len(order) // HELD_OUT])
    for rows, ending in ((seen, ""), (held_out, "-test")):
        images = dataset.images(np.sort(rows))
        write_images(outdir / f"A{ending}.zip", sobel(images))
        write_images(outdir / f"B{ending}.zip", images)
        click.echo(f"{len(rows)} pairs in {outdir}/A{ending}.zip and B{ending}.zip")


if __name__ == "__main__":
    sys.exit(main())
