"""Translate images with a trained model (--cfg=csgan): a PNG for each, and a sheet.

\b
    python translate.py --network=runs/.../network-snapshot-000016.pt --source=edges/ --direction=AB
    python translate.py --network=... --source=A-test.zip --direction=AB --target=B-test.zip --metrics=mse,psnr,ssim

Images of another size are centre-cropped and resized; convert them with dataset_tool.py if the training data was
converted otherwise. With --target, images of the same names, the results go to metrics.json, too.
"""

import sys
from pathlib import Path

import click

from metrics.lpips import Lpips
from metrics.paired import NAMES, parse_names
from stylegan2_icgan.models import load_model
from stylegan2_icgan.using.translating import RECORD, SHEET, Translation, named_files
from torch_utils.command_line import Command, NearestChoice, UserError, Words
from torch_utils.misc import keep_large_buffers, pick_device
from training.networks.translation import DIRECTIONS


@click.command(cls=Command, help=__doc__)
@click.option("--network", type=Path, required=True, help="Snapshot written by train.py.", metavar="FILE")
@click.option("--source", type=Path, required=True, help="Folder or zip of images.", metavar="PATH")
@click.option("--direction", type=NearestChoice(DIRECTIONS), required=True, help="AB: from --data to --data-b.")
@click.option("--target", type=Path, help="What the translated images should be: folder or zip.", metavar="PATH")
@click.option("--metrics", help=f"Of {', '.join(NAMES)}.  [default with --target: mse,psnr,ssim]", metavar="NAMES")
@click.option("--lpips-weights", cls=Words, type=Path, help="Local VGG16 and LPIPS heads.", metavar="FILE ...")
@click.option("--outdir", type=Path, default=Path("out"), show_default=True, help="Where to write.", metavar="DIR")
@click.option("--device", type=NearestChoice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
def main(
    network: Path,
    source: Path,
    direction: str,
    target: Path | None,
    metrics: str | None,
    lpips_weights: tuple[Path, ...],
    outdir: Path,
    device: str,
) -> None:
    if target is None and metrics is not None:
        raise UserError(f"--metrics={metrics} compares with targets; name them with --target, or leave it out")
    names = parse_names(metrics or "mse,psnr,ssim") if target is not None else []
    if lpips_weights and "lpips" not in names:
        raise UserError("--lpips-weights are for --metrics=lpips, which is not asked for; leave them out")
    keep_large_buffers()
    model = load_model(network, pick_device(device), translator=True)
    files = named_files(source, "--source")
    targets = None if target is None else named_files(target, "--target")
    lpips = Lpips.load(lpips_weights, model.device) if "lpips" in names else None
    translation = Translation(model, direction, source, files, target, targets, names, lpips)
    translation.check(outdir)
    means = translation.write(outdir)
    for name, mean in means.items():
        click.echo(f"{name:<8}{mean.value:>12.5g} ± {mean.error:.2g}")
    record = f", the metrics in {outdir / RECORD}" if means else ""
    click.echo(f"{len(files)} images in {outdir}, the first of them on {outdir / SHEET}{record}")


if __name__ == "__main__":
    sys.exit(main())
