"""Make a data set for training: any folder or zip of images -> one zip of PNG files and a `dataset.json`.

    python dataset_tool.py convert --source photos/ --dest datasets/photos.zip --resolution 64
    python dataset_tool.py digits

The zip holds stored (not deflated) members `00000/img00000123.png`, all of one square size and one number of channels,
and at its end `dataset.json`:
    labels         [[name, class number], ...], or null
    num_classes    0 without labels; class_names: the folders they came from, or null
    resolution, channels, transform, filter, pad_color, background: what was done
    sources        {name: file it was made from}; source_sizes {name: [width, height]}, upright
    refused        {file: reason}: images that could not be used
    attribution, license: passed on from the dataset.json of the source, where it has them
The same input gives the same bytes, whatever the number of workers.
"""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import zipfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import numpy as np
from PIL import Image, ImageColor

from torch_utils import images
from torch_utils.command_line import Command, Group, NearestChoice, UserError
from torch_utils.files import atomic_write, format_time
from training.image_source import Labels, Source, SourceFile, count_text, decide_labels, open_source, shown

FILES_PER_TASK = 8  # with 2 tasks per worker on their way, at most 16 converted images per worker are in memory
MIN_FILES_PER_WORKER = 64  # a process takes half a second to start
REPORT_INTERVAL_SEC = 10  # between two lines of progress where there is no terminal
MAX_REFUSED_LINES = 20
MIN_RESOLUTION, MAX_RESOLUTION = 8, 8192  # the networks begin at 4x4 and double at least once

DIGITS_CREDITS = {
    "attribution": (
        "Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning "
        "Repository, https://doi.org/10.24432/C50P49, CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). "
        "Changes: the 1,797 images of the test set, as distributed with scikit-learn, were scaled from 0..16 to "
        "0..255 and enlarged from 8x8 to 16x16 pixels with a bicubic filter."
    ),
    "license": "CC-BY-4.0",
}


# -- Images ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What happens to every image. channels: 'grey', 'rgb', or 'auto': grey as long as the image has no colour."""

    resolution: int | None
    channels: str
    transform: str
    resize_filter: str
    pad_color: images.Color
    background: images.Color


class Converted(NamedTuple):
    """One image in its new form, or the reason why it was refused."""

    name: str  # in the source
    png: bytes = b""
    side: int = 0  # pixels
    source_size: tuple[int, int] = (0, 0)  # width, height, upright
    has_color: bool = False  # told only with recipe.channels='auto'
    reason: str = ""


def convert_file(file: SourceFile, recipe: Recipe) -> Converted:
    """Read, decode, make square, resize and encode one image."""
    try:
        image = images.decode_image(file.read(), recipe.background)
        source_size = image.size
        if recipe.channels != "auto":
            image = image.convert("L" if recipe.channels == "grey" else "RGB")
        image = images.make_square(image, recipe.resolution, recipe.transform, recipe.resize_filter, recipe.pad_color)
    except images.ImageRefused as refusal:
        return Converted(file.name, reason=str(refusal))
    has_color = recipe.channels == "auto" and not images.is_grey(image)
    image = image.convert("RGB" if has_color or recipe.channels == "rgb" else "L")
    return Converted(file.name, images.encode_png(image), image.width, source_size, has_color)


def _convert_task(files: Sequence[SourceFile], recipe: Recipe) -> list[Converted]:
    return [convert_file(file, recipe) for file in files]


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def convert_files(files: Sequence[SourceFile], recipe: Recipe, workers: int) -> Iterator[Converted]:
    """Convert in `workers` processes (1: in this one). The results come in the order of the files."""
    if workers == 1:
        yield from (convert_file(file, recipe) for file in files)
        return
    spawn = multiprocessing.get_context("spawn")  # forking a process that has threads can hang
    pool = ProcessPoolExecutor(workers, spawn, initializer=_leave_interrupts_to_parent)
    tasks: deque[Future[list[Converted]]] = deque()
    try:
        for start in range(0, len(files), FILES_PER_TASK):
            # A worker is born with Ctrl-C blocked, as this thread has it here, until its initializer ignores it.
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            tasks.append(pool.submit(_convert_task, files[start : start + FILES_PER_TASK], recipe))
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            if len(tasks) == 2 * workers:
                yield from tasks.popleft().result()
        while tasks:
            yield from tasks.popleft().result()
    except BrokenExecutor:
        raise UserError(f"--workers={workers}: a worker was killed, perhaps for want of memory; use fewer") from None
    finally:
        pool.shutdown(cancel_futures=True)


def with_progress(results: Iterator[Converted], total: int) -> Generator[Converted]:
    """Pass the results on; a bar on a terminal, now and then a line elsewhere."""
    if sys.stdout.isatty():
        from rich.progress import track

        yield from track(results, "Converting", total)
        return
    start_time = last_time = time.monotonic()
    for count, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if now - last_time >= REPORT_INTERVAL_SEC and count < total:
            last_time, speed = now, count / (now - start_time)
            left = format_time((total - count) / speed)
            click.echo(f"{count:,} of {total:,} images, {speed:.0f} images/s, {left} left")


# -- The zip -----------------------------------------------------------------------------------------------------------


class DatasetWriter:
    """Writes the images in order, then dataset.json; its bytes depend on nothing else. Close it in any case."""

    def __init__(self, stream: IO[bytes]) -> None:
        stream.seek(0)
        stream.truncate()
        self._zip = zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED)
        self._num_images = 0

    def add(self, png: bytes) -> str:
        """Write one image; returns its name."""
        number = f"{self._num_images:08d}"
        name = f"{number[:5]}/img{number}.png"
        self._write(name, png)
        self._num_images += 1
        return name

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write dataset.json."""
        self._write("dataset.json", json.dumps(metadata, separators=(",", ":")).encode())

    def close(self) -> None:
        self._zip.close()

    def _write(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        info.create_system = 3  # Unix, on every system
        info.external_attr = 0o644 << 16
        self._zip.writestr(info, data)


@dataclass
class Outcome:
    """What became of the images."""

    sources: dict[str, str] = field(default_factory=dict)  # name in the zip -> name in the source
    source_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # name in the zip -> width, height
    refused: dict[str, str] = field(default_factory=dict)  # name in the source -> reason
    side: int = 0  # pixels
    has_color: bool = False  # told only with recipe.channels='auto': unfinished, start again in RGB


def write_images(writer: DatasetWriter, results: Iterator[Converted], recipe: Recipe) -> Outcome:
    """Write converted images as they come; with `recipe.channels` 'auto', up to the first one that has colour."""
    outcome = Outcome()
    first = ""
    for result in results:
        if result.reason:
            outcome.refused[result.name] = result.reason
            continue
        size = f"{shown(result.name)} is {result.side}x{result.side} after --transform={recipe.transform}"
        first, outcome.side = first or size, outcome.side or result.side
        remedy = f"give --resolution={nearest_sides(outcome.side)}"
        if not is_valid_side(outcome.side):
            raise UserError(f"{size}; expected a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION}: {remedy}")
        if result.side != outcome.side:
            raise UserError(f"{first}, but {size}; expected one size for all: {remedy}")
        if result.has_color:
            outcome.has_color = True
            return outcome
        name = writer.add(result.png)
        outcome.sources[name] = result.name
        outcome.source_sizes[name] = result.source_size
    return outcome


def describe(source: Source, labels: Labels, recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """The content of dataset.json. Credits are passed on, as licences demand."""
    table = None
    if labels.by_name is not None:
        table = [[name, labels.by_name[original]] for name, original in outcome.sources.items()]
    credits = {key: value for key, value in (source.metadata or {}).items() if key in DIGITS_CREDITS}
    return {
        "labels": table,
        "num_classes": labels.num_classes,
        "class_names": labels.class_names,
        "resolution": outcome.side,
        "channels": 3 if recipe.channels == "rgb" else 1,
        "transform": recipe.transform,
        "filter": recipe.resize_filter,
        "pad_color": recipe.pad_color if recipe.transform == "pad" else None,
        "background": recipe.background,
        **credits,
        "sources": outcome.sources,
        "source_sizes": outcome.source_sizes,
        "refused": source.refused | outcome.refused,
    }


def check_destination(dest: Path, overwrite: bool) -> None:
    """Refuse names that are no zip, folders, and files that would be lost."""
    if dest.is_dir():
        raise UserError(f"--dest={dest} is a folder; expected the name of a zip, for example {dest / 'data.zip'}")
    if dest.suffix.lower() != ".zip":
        raise UserError(f"--dest={dest} does not end in .zip; expected for example {dest}.zip")
    if dest.exists() and not overwrite:
        raise UserError(f"--dest={dest} exists; give another name, or --overwrite to replace it")


@contextlib.contextmanager
def open_destination(dest: Path) -> Iterator[IO[bytes]]:
    """The file to write, under its final name only when the block ends well. Missing folders are made."""
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(dest) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"--dest={dest} can't be written ({error.strerror or error}); choose another place") from None


# -- Command lines -----------------------------------------------------------------------------------------------------


def is_valid_side(side: int) -> bool:
    return MIN_RESOLUTION <= side <= MAX_RESOLUTION and side & (side - 1) == 0


def nearest_sides(side: int) -> str:
    """'64', or '64 or 128' for a side between these powers of two."""
    below = 1 << (min(max(side, MIN_RESOLUTION), MAX_RESOLUTION).bit_length() - 1)
    return f"{below} or {2 * below}" if below < side < MAX_RESOLUTION else f"{below}"


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


def report(source: Source, dest: Path, metadata: dict[str, Any], wall_sec: float) -> None:
    """Say what was refused, skipped and made."""
    refused, side = metadata["refused"], metadata["resolution"]
    for name, reason in list(refused.items())[:MAX_REFUSED_LINES]:
        click.echo(f"Refused {shown(name)}: {reason}", err=True)
    if len(refused) > MAX_REFUSED_LINES:
        rest = len(refused) - MAX_REFUSED_LINES
        click.echo(f'Refused {rest:,} more; all are listed under "refused" in the dataset.json of {dest}', err=True)
    if source.skipped:
        click.echo(f"Skipped {source.skipped.total():,} other files ({count_text(source.skipped)}).")
    num_images, kind = len(metadata["sources"]), "grey" if metadata["channels"] == 1 else "RGB"
    limit = max if metadata["transform"] == "pad" else min
    num_enlarged = sum(limit(size) < side for size in metadata["source_sizes"].values())
    click.echo(
        f"Wrote {dest}: {num_images:,} images, {side}x{side}, {kind}, {metadata['num_classes']} classes; "
        f"{len(refused):,} refused, {num_enlarged:,} enlarged from a smaller size; "
        f"{dest.stat().st_size / 2**20:.1f} MiB, {format_time(wall_sec)}, {num_images / wall_sec:.0f} images/s."
    )


@click.group(cls=Group)
def main() -> None:
    """Make data sets for training."""


PATH = click.Path(path_type=Path)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace --dest if it exists.")


@main.command(cls=Command, context_settings={"show_default": True})
@click.option("--source", type=PATH, required=True, metavar="DIR|ZIP", help="Folder, with its sub-folders, or zip.")
@click.option("--dest", type=PATH, required=True, metavar="ZIP", help="What to write; missing folders are made.")
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
@click.option("--labels", type=NearestChoice(["auto", "folders", "none"]), default="auto", help="See above.")
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
def convert(
    source: Path,
    dest: Path,
    resolution: int | None,
    transform: str,
    resize_filter: str,
    channels: str,
    pad_color: images.Color | None,
    background: images.Color,
    labels: str,
    max_images: int | None,
    workers: int,
    overwrite: bool,
) -> None:
    """Convert a folder or zip of images.

    An image that can't be used is named with the reason and left out; the others are converted.

    \b
    --transform, how a picture becomes square:
      center-crop  the largest square in its middle
      pad          all of it, between bars of --pad-color
      fit          stretched; the aspect ratio changes
      none         not at all; images that are not square are refused

    \b
    --labels, where the classes come from:
      auto         a dataset.json in the source; else its top-level folders
                   are the classes if every image lies in one of at least two
      folders      the top-level folders, or an error
      none         no labels
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

    # Find the images and their labels.
    found = open_source(source)
    decided = decide_labels(found, labels)
    files = found.files
    if max_images is not None and max_images < len(files):
        files = [files[i * len(files) // max_images] for i in range(max_images)]
    click.echo(f"Found {len(found.files):,} images in {source}, converting {len(files):,}.")
    click.echo(f"Labels: {decided.decision}.")

    # Convert. 'auto' hopes for grey and starts again in RGB when an image has colour, most often before it began.
    recipe = Recipe(resolution, channels, transform, resize_filter, pad_color or images.BLACK, background)
    workers = min(workers, 1 + len(files) // MIN_FILES_PER_WORKER)
    attempts = [recipe, replace(recipe, channels="rgb")]
    if convert_file(files[0], recipe).has_color:
        attempts.pop(0)
    with open_destination(dest) as stream:
        for attempt in attempts:
            results = with_progress(convert_files(files, attempt, workers), len(files))
            with contextlib.closing(results), contextlib.closing(DatasetWriter(stream)) as writer:
                outcome = write_images(writer, results, attempt)
                metadata = describe(found, decided, attempt, outcome)
                writer.finish(metadata)
            if not outcome.has_color:
                break
        if not outcome.sources:
            name, reason = next(iter(outcome.refused.items()))
            none = f"none of its {len(files):,} images can be used"
            raise UserError(f"--source={source}: {none}; the first, {shown(name)}: {reason}")
    report(found, dest, metadata, time.monotonic() - start_time)


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
    with open_destination(dest) as stream, contextlib.closing(DatasetWriter(stream)) as writer:
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
