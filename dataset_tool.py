"""Make a data set for training: images in any of a dozen formats -> one zip of PNG files and a `dataset.json`.

    python dataset_tool.py convert --source photos/ --dest datasets/photos.zip --resolution 64
    python dataset_tool.py convert --source NotoColorEmoji.ttf --dest datasets/emoji.zip --resolution 64
    python dataset_tool.py digits

The zip holds stored (not deflated) members `00000/img00000123.png`, all of one square size and one number of channels,
and at its end `dataset.json`:
    labels         [[name, class number], ...], or null
    num_classes    0 without labels; class_names: the folders they came from, or null; class_counts: images of each
    resolution, channels, transform, crop, filter, pad_color, background: what was done
    format, split  what the source was read as; source_hash: SHA-256 over checksums and names of what was read
    attributes     {name: {attribute: value}}: what else the source says about an image (domain, subgroup, ...)
    sources        {name: file it was made from}; source_sizes {name: [width, height]}, upright
    refused        {file: reason}: images that could not be used
    attribution, license: passed on from the source, where it has them
The same input gives the same bytes, whatever the number of workers, and however often the work was interrupted.
docs/datasets.md has every format.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageColor

from torch_utils import images
from torch_utils.command_line import Command, Group, NearestChoice, UserError
from torch_utils.files import atomic_write, format_time
from training.conversion import (
    MAX_ENLARGED,
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    Recipe,
    classes_text,
    coarse_images,
    describe,
    is_valid_side,
    make_report,
    nearest_sides,
    partial_key,
    write_images,
)
from training.formats import FORMATS, SourceOptions, open_format
from training.image_source import Source, count_text, shown
from training.labelling import decide_labels, select_files
from training.partial_zip import DatasetWriter, PartialZip, report_path

MAX_REFUSED_LINES = 20

DIGITS_CREDITS = {
    "attribution": (
        "Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning "
        "Repository, https://doi.org/10.24432/C50P49, CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). "
        "Changes: the 1,797 images of the test set, as distributed with scikit-learn, were scaled from 0..16 to "
        "0..255 and enlarged from 8x8 to 16x16 pixels with a bicubic filter."
    ),
    "license": "CC-BY-4.0",
}


# -- The destination ---------------------------------------------------------------------------------------------------


def check_destination(dest: Path, overwrite: bool) -> None:
    """Refuse names that are no zip, folders, and files that would be lost."""
    if dest.is_dir():
        raise UserError(f"--dest={dest} is a folder; expected the name of a zip, for example {dest / 'data.zip'}")
    if dest.suffix.lower() != ".zip":
        raise UserError(f"--dest={dest} does not end in .zip; expected for example {dest}.zip")
    if dest.exists() and not overwrite:
        raise UserError(f"--dest={dest} exists; give another name, or --overwrite to replace it")


@contextlib.contextmanager
def open_destination(dest: Path) -> Iterator[None]:
    """Make missing folders; what can't be written in the block becomes one line."""
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"--dest={dest} can't be written ({error.strerror or error}); choose another place, or make room and give "
            "the same command again"
        ) from None


# -- Command lines -----------------------------------------------------------------------------------------------------


class Resolution(click.ParamType):
    """64 or 64x64: square, a power of two."""

    name = "resolution"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", str(value))
        if not match:
            self.fail(f"{value!r}; expected a side in pixels, for example 64 or 64x64.", param, ctx)
        side = int(match[1])
        if match[2] and int(match[2]) != side:
            self.fail(f"{value} is not square; expected for example {nearest_sides(side)}.", param, ctx)
        if not is_valid_side(side):
            limits = f"a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION}"
            self.fail(f"{value} is not {limits}; the nearest: {nearest_sides(side)}.", param, ctx)
        return side


class ColorName(click.ParamType):
    """black, '#ff8000', 'rgb(255,128,0)'."""

    name = "color"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> images.Color:
        if isinstance(value, tuple):
            return value
        try:
            return ImageColor.getrgb(value)[:3]
        except ValueError:
            self.fail(f"{value!r} is no colour; expected for example black, white or '#ff8000'.", param, ctx)


class Objects(click.ParamType):
    """3-8: fewest and most."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,6})-(\d{1,6})", str(value))
        if not match or int(match[1]) > int(match[2]):
            self.fail(f"{value!r}; expected the fewest and the most objects, for example 3-8.", param, ctx)
        return int(match[1]), int(match[2])


def report(source: Source, dest: Path, metadata: dict[str, Any], num_converted: int, wall_sec: float) -> None:
    """Say what was refused, skipped and made."""
    refused, side = metadata["refused"], metadata["resolution"]
    for name, reason in list(refused.items())[:MAX_REFUSED_LINES]:
        click.echo(f"Refused {shown(name)}: {reason}", err=True)
    if len(refused) > MAX_REFUSED_LINES:
        click.echo(f"Refused {len(refused) - MAX_REFUSED_LINES:,} more; all are in {report_path(dest)}", err=True)
    if source.skipped:
        click.echo(f"Skipped {source.skipped.total():,} other files ({count_text(source.skipped)}).")
    num_images, kind = len(metadata["sources"]), "grey" if metadata["channels"] == 1 else "RGB"
    coarse = coarse_images(metadata)
    if coarse:
        names = ", ".join(f"{shown(name)} ({width}x{height})" for name, (width, height) in list(coarse.items())[:5])
        more = f", ... ({len(coarse) - 5:,} more, all in {report_path(dest)})" if len(coarse) > 5 else ""
        click.echo(
            f"{len(coarse):,} images are hardly pictures: below {MIN_RESOLUTION} px, or enlarged more than "
            f"{MAX_ENLARGED} times: {names}{more}",
            err=True,
        )
    limit = max if metadata["transform"] == "pad" else min
    num_enlarged = sum(limit(size) < side for size in metadata["source_sizes"].values())
    click.echo(
        f"Wrote {dest}: {num_images:,} images, {side}x{side}, {kind}, {classes_text(metadata)}; "
        f"{len(refused):,} refused, {num_enlarged:,} enlarged from a smaller size; "
        f"{dest.stat().st_size / 2**20:.1f} MiB, {format_time(wall_sec)}, {num_converted / wall_sec:.0f} images/s."
    )


@click.group(cls=Group)
def main() -> None:
    """Make data sets for training."""


PATH = click.Path(path_type=Path)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace --dest if it exists.")


@main.command(cls=Command, context_settings={"show_default": True})
@click.option("--source", type=PATH, required=True, metavar="PATH", help="Folder, zip, archive, parquet file or font.")
@click.option("--dest", type=PATH, required=True, metavar="ZIP", help="What to write; missing folders are made.")
@click.option(
    "--format", "form", type=NearestChoice(["auto", *sorted(FORMATS)]), default="auto", help="See docs/datasets.md."
)
@click.option("--split", metavar="NAME", help="train, val, test, where the format has several.  [default: train]")
@click.option("--list", "list_file", type=PATH, metavar="FILE", help="ImageNet: lines of name and label.")
@click.option("--objects", type=Objects(), metavar="A-B", help="COCO: only images with A to B objects, such as 3-8.")
@click.option(
    "--min-object-area",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="X",
    help="COCO: a box that covers no more than this part of the image is no object, such as 0.02.",
)
@click.option("--emoji-list", type=PATH, metavar="FILE", help="Font: Unicode's emoji-test.txt.")
@click.option(
    "--resolution", type=Resolution(), metavar="N", help="Side, a power of two: 64 or 64x64.  [default: kept]"
)
@click.option("--transform", type=NearestChoice(images.TRANSFORMS), default="center-crop", help="See above.")
@click.option(
    "--resize-filter", type=NearestChoice(list(images.FILTERS)), default="lanczos", help="All are antialiased."
)
@click.option("--channels", type=NearestChoice(["auto", "grey", "rgb"]), default="auto", help="auto: grey if all are.")
@click.option("--pad-color", type=ColorName(), metavar="COLOR", help="Bars of --transform=pad.  [default: black]")
@click.option("--background", type=ColorName(), metavar="COLOR", default="white", help="Behind transparent pixels.")
@click.option("--labels", default="auto", metavar="auto|folders|none|ATTRIBUTE", help="See above.")
@click.option("--only", multiple=True, metavar="ATTRIBUTE=A,B", help="Images with one of these values; repeatable.")
@click.option("--skip", multiple=True, metavar="ATTRIBUTE=A,B", help="Images without these values; repeatable.")
@click.option("--max-images", type=click.IntRange(min=1), metavar="N", help="At most N, spread over the sorted names.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    default=os.cpu_count() or 1,
    show_default="CPU cores",
    help="Processes; they do not change the result.",
)
@overwrite_option
@click.pass_context
def convert(
    ctx: click.Context,
    source: Path,
    dest: Path,
    form: str,
    split: str | None,
    list_file: Path | None,
    objects: tuple[int, int] | None,
    min_object_area: float | None,
    emoji_list: Path | None,
    resolution: int | None,
    transform: str,
    resize_filter: str,
    channels: str,
    pad_color: images.Color | None,
    background: images.Color,
    labels: str,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    max_images: int | None,
    workers: int,
    overwrite: bool,
) -> None:
    """Convert a folder or zip of images, or a data set in one of the known formats.

    An image that can't be used is named with the reason and left out; the others are converted. All of them are listed
    in NAME.convert-report.json beside the zip. When it is interrupted, the same command goes on where it was.

    \b
    --transform, how a picture becomes square:
      center-crop  the largest square in its middle
      pad          all of it, between bars of --pad-color
      fit          stretched; the aspect ratio changes
      none         not at all; images that are not square are refused

    \b
    --labels, where the classes come from:
      auto         what the format says, or a dataset.json in the source; else
                   its top-level folders are the classes if every image lies
                   in one of at least two
      folders      the top-level folders, or an error
      none         no labels
      ATTRIBUTE    the values of an attribute, such as subgroup or domain
    """
    start_time = time.monotonic()
    if pad_color is not None and transform != "pad":
        raise UserError(
            f"--pad-color counts only with --transform=pad, not {transform}; drop it, or change --transform"
        )
    if transform == "fit" and resolution is None:
        raise UserError("--transform=fit stretches to a given size; give --resolution, too")
    if dest.is_file() and source.exists() and dest.samefile(source):
        raise UserError(f"--dest={dest} is --source itself; give another name")
    check_destination(dest, overwrite)

    # Find the images and their labels, and choose.
    source_options = SourceOptions(split, list_file, objects, min_object_area, emoji_list, resolution, background)
    found, sentence = open_format(source, form, source_options)
    if sentence:
        click.echo(sentence)
    decided = decide_labels(found, labels)
    files = select_files(found, decided, only, skip)
    if max_images is not None and max_images < len(files):
        files = [files[i * len(files) // max_images] for i in range(max_images)]
    of_split = f" ({found.split})" if found.split else ""
    click.echo(f"Found {len(found.files):,} images in {source}{of_split}, converting {len(files):,}.")
    click.echo(f"Labels: {decided.decision}.")

    # Convert, from where an earlier call was interrupted, if it was.
    recipe = Recipe(resolution, channels, transform, resize_filter, pad_color or images.BLACK, background)
    given = {param.opts[-1]: ctx.params[param.name] for param in ctx.command.params if param.name in ctx.params}
    options = {flag: value for flag, value in given.items() if flag not in ("--dest", "--workers", "--overwrite")}
    options |= {flag: str(value) for flag, value in options.items() if isinstance(value, Path)}
    key = partial_key(found, files, options)
    with open_destination(dest), PartialZip(dest, key) as partial:
        if partial.thrown_away:
            click.echo("Starting anew: what an interrupted call left was of other options or another source.")
        try:
            outcome, attempt = write_images(partial, found, files, recipe, workers, click.echo)
        except KeyboardInterrupt:
            click.echo(f"Stopped after {partial.num_done:,} of {len(files):,} images; the same command goes on there.")
            raise
        metadata = describe(found, decided, attempt, outcome)
        wall_sec = time.monotonic() - start_time
        partial.finish(metadata, make_report(found, metadata, outcome, options, wall_sec))
    num_converted = len(outcome.sources) + len(outcome.refused) - outcome.num_continued
    report(found, dest, metadata, num_converted, time.monotonic() - start_time)


@main.command(cls=Command, context_settings={"show_default": True})
@click.option("--dest", type=PATH, default="datasets/digits.zip", metavar="ZIP", help="What to write.")
@overwrite_option
def digits(dest: Path, overwrite: bool) -> None:
    """Make a small real data set: 1,797 handwritten digits, 16x16, grey, 10 classes.

    The test set of UCI's Optical Recognition of Handwritten Digits (CC BY 4.0), from the copy in scikit-learn.
    """
    check_destination(dest, overwrite)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("digits needs scikit-learn, which is not installed: pip install scikit-learn") from None
    data = load_digits()
    labels = []
    with open_destination(dest), atomic_write(dest) as stream:
        writer = DatasetWriter(stream)
        for values, label in zip(data.images, data.target, strict=True):
            small = Image.fromarray((values * (255 / 16)).astype(np.float32))  # float: overshoots are clipped only once
            large = np.asarray(small.resize((16, 16), Image.Resampling.BICUBIC))
            pixels = np.clip(np.rint(large), 0, 255).astype(np.uint8)
            labels.append([writer.add(images.encode_png(Image.fromarray(pixels))), int(label)])
        names = [str(name) for name in data.target_names]
        table = {"labels": labels, "num_classes": len(names), "class_names": names}
        writer.finish(
            table | {"resolution": 16, "channels": 1, "transform": "none", "filter": "bicubic"} | DIGITS_CREDITS
        )
    click.echo(f"Wrote {dest}: {len(labels):,} images, 16x16, grey, 10 classes; {dest.stat().st_size / 2**10:.0f} KiB.")


if __name__ == "__main__":
    main()
