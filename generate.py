"""Generate images with a trained model: a row per condition, a column per seed, and a sheet of all.

\b
    python generate.py --network=runs/00000-digits-instance-tiny-batch16/network-snapshot-000036.pt --seeds=0-7
    python generate.py --network=... --instance-feats=datasets/digits.instances/features.npy --rows=0,5-9
    python generate.py --network=... --instance-images a.png b.png
"""

import math
import sys
import zlib
from pathlib import Path

import click
import torch

from stylegan2_icgan.conditioning import Rows, from_exemplars, from_features, from_images, with_class
from stylegan2_icgan.models import load_model
from torch_utils.command_line import Command, NearestChoice, Ranges, UserError, Words
from torch_utils.misc import keep_large_buffers, pick_device
from training.image_grid import save_png, sheet, sheet_scale
from training.randomness import seed_everything
from training.sampling import sample_images, z_from_seeds


@click.command(cls=Command, help=__doc__)
@click.option("--network", type=Path, required=True, help="Snapshot written by train.py.", metavar="FILE")
@click.option("--seeds", type=Ranges(), default="0-7", show_default=True, help="Seeds of the noise z.", metavar="0-3,7")
@click.option("--instance-feats", type=Path, help="Condition on rows of this .npy file.", metavar="NPY")
@click.option("--instance-images", cls=Words, type=Path, help="Condition on these images.", metavar="FILE ...")
@click.option("--rows", type=Ranges(), help="Rows of the features, or of the stored exemplars.", metavar="0,5-9")
@click.option("--class", "label", type=int, help="Class of every row, for models with classes.", metavar="N")
@click.option("--data", type=Path, help="Images the features belong to, to show them on the sheet.", metavar="ZIP")
@click.option("--extractor-weights", type=Path, help="Local weights of the model's extractor.", metavar="FILE")
@click.option("--trunc", type=float, default=1.0, show_default=True, help="Truncation psi.", metavar="PSI")
@click.option("--trunc-cutoff", type=int, help="Truncate only the first N styles.", metavar="N")
@click.option("--noise-mode", type=NearestChoice(["const", "random", "none"]), default="const", show_default=True)
@click.option("--outdir", type=Path, default=Path("out"), show_default=True, help="Where to write.", metavar="DIR")
@click.option("--device", type=NearestChoice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
def main(
    network: Path,
    seeds: list[int],
    instance_feats: Path | None,
    instance_images: tuple[Path, ...],
    rows: list[int] | None,
    label: int | None,
    data: Path | None,
    extractor_weights: Path | None,
    trunc: float,
    trunc_cutoff: int | None,
    noise_mode: str,
    outdir: Path,
    device: str,
) -> None:
    check_flags(instance_feats, instance_images, rows, data, extractor_weights)
    if not math.isfinite(trunc) or (trunc_cutoff is not None and trunc_cutoff < 0):
        raise UserError(
            f"--trunc={trunc} --trunc-cutoff={trunc_cutoff}: expected a finite psi and a cutoff of 0 or more"
        )
    keep_large_buffers()
    model = load_model(network, pick_device(device))
    if instance_feats is not None:
        table = from_features(model, instance_feats, rows, data)
    elif instance_images:
        table = from_images(model, instance_images, extractor_weights)
    else:
        table = from_exemplars(model, rows)
    table = with_class(model, table, label)
    generator = model.generator  # built here, once the flags are known to fit it, and before anything is written

    try:
        outdir.mkdir(parents=True, exist_ok=True)
        samples = write_images(generator, table, seeds, outdir, trunc, trunc_cutoff, noise_mode)
        explaining = table.images.unsqueeze(1) if len(table.images) else None
        save_png(sheet(samples, explaining), outdir / "sheet.png", sheet_scale(model.recipe.shape.img_resolution))
    except OSError as error:
        raise UserError(f"--outdir={outdir} can't be written ({error}); name another folder") from None
    click.echo(f"{samples.shape[0] * samples.shape[1]} images in {outdir}, all of them on {outdir / 'sheet.png'}")


def write_images(
    generator: torch.nn.Module,
    table: Rows,
    seeds: list[int],
    outdir: Path,
    trunc: float,
    trunc_cutoff: int | None,
    noise_mode: str,
) -> torch.Tensor:
    """Write a PNG per row and seed; uint8 [rows, seeds, C, H, W].

    One image at a time: the bytes of an image depend on its row and seed, not on what else was asked for.
    """
    written = []
    for row, name in enumerate(table.names):
        for seed in seeds:
            seed_everything(seed, zlib.crc32(name.encode()))  # for --noise-mode=random
            image = sample_images(
                generator,
                z_from_seeds([seed], generator.z_dim),
                table.condition[row : row + 1],
                truncation_psi=trunc,
                truncation_cutoff=trunc_cutoff,
                noise_mode=noise_mode,
            )[0]
            save_png(image, outdir / f"{name}{'-' if name else ''}seed{seed:04d}.png")
            written.append(image)
    return torch.stack(written).unflatten(0, (len(table.names), len(seeds)))


def check_flags(
    instance_feats: Path | None,
    instance_images: tuple[Path, ...],
    rows: list[int] | None,
    data: Path | None,
    extractor_weights: Path | None,
) -> None:
    """Refuse flags that would silently do nothing."""
    if instance_feats is not None and instance_images:
        raise UserError("--instance-feats and --instance-images both given; expected one of them")
    if instance_images and rows is not None:
        raise UserError("--rows picks rows of features or exemplars; leave it out with --instance-images")
    if data is not None and instance_feats is None:
        raise UserError(f"--data={data} shows the images of --instance-feats, which is missing; leave --data out")
    if extractor_weights is not None and not instance_images:
        raise UserError(f"--extractor-weights={extractor_weights} is for --instance-images, which is missing")


if __name__ == "__main__":
    sys.exit(main())
