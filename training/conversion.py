"""From the images of a source to a data set: many processes convert, one writes, and any of it may be killed."""

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import PIL
from PIL import features

from torch_utils import images
from torch_utils.command_line import UserError
from torch_utils.files import format_time
from training.image_source import ImageFile, Labels, Source, file_stamp, shown
from training.partial_zip import Finished, PartialZip, WorkerKilled, image_name

MIN_FILES_PER_WORKER = 64  # a process takes half a second to start
REPORT_INTERVAL_SEC = 10  # between two lines of progress where there is no terminal
MAX_ENLARGED = 8  # times; beyond, an image is mostly what the filter made of it
MIN_RESOLUTION, MAX_RESOLUTION = 8, 8192  # the networks begin at 4x4 and double at least once
PARTIAL_FORMAT = 1  # another one makes partial zips of older versions worthless


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
    source_crc: int | None = None  # None: it could not be read


def convert_file(file: ImageFile, recipe: Recipe) -> Converted:
    """Read, decode, make square, resize and encode one image."""
    source_crc = None
    try:
        data = file.read()
        source_crc = zlib.crc32(data)
        image = images.decode_image(data, recipe.background)
        source_size = image.size
        if recipe.channels != "auto":
            image = image.convert("L" if recipe.channels == "grey" else "RGB")
        image = images.make_square(image, recipe.resolution, recipe.transform, recipe.resize_filter, recipe.pad_color)
    except images.ImageRefused as refusal:
        return Converted(file.name, reason=str(refusal), source_crc=source_crc)
    has_color = recipe.channels == "auto" and not images.is_grey(image)
    image = image.convert("RGB" if has_color or recipe.channels == "rgb" else "L")
    png = images.encode_png(image)
    return Converted(file.name, png, image.width, source_size, has_color, source_crc=source_crc)


# -- Workers -----------------------------------------------------------------------------------------------------------


def _convert_task(files: Sequence[ImageFile], recipe: Recipe) -> list[Converted]:
    return [convert_file(file, recipe) for file in files]


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent; end with it, even when it is killed, instead of waiting for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=[parent.sentinel], daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def convert_files(
    files: Sequence[ImageFile], recipe: Recipe, workers: int, files_per_task: int = 8
) -> Iterator[Converted]:
    """Convert in `workers` processes (1: in this one). The results come in the order of the files.

    Two tasks a worker are on their way, so that 2 * files_per_task converted images a worker are in memory.
    """
    if workers == 1:
        yield from (convert_file(file, recipe) for file in files)
        return
    spawn = multiprocessing.get_context("spawn")  # forking a process that has threads can hang
    pool = ProcessPoolExecutor(workers, spawn, initializer=_prepare_worker)
    tasks: deque[Future[list[Converted]]] = deque()
    try:
        for start in range(0, len(files), files_per_task):
            # A worker is born with Ctrl-C blocked, as this thread has it here, until its initializer ignores it.
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            tasks.append(pool.submit(_convert_task, files[start : start + files_per_task], recipe))
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            if len(tasks) == 2 * workers:
                yield from tasks.popleft().result()
        while tasks:
            yield from tasks.popleft().result()
    except BrokenExecutor:
        raise WorkerKilled(
            f"--workers={workers}: a worker was killed, perhaps for want of memory; the same command with fewer goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def with_progress(
    results: Iterator[Converted], num_done: int, total: int, say: Callable[[str], None]
) -> Generator[Converted]:
    """Pass the results on; a bar on a terminal, now and then a line elsewhere. `num_done`: by an earlier process."""
    if sys.stdout.isatty():
        from rich.progress import Progress

        with Progress() as bar:
            task = bar.add_task("Converting", total=total, completed=num_done)
            for result in results:
                yield result
                bar.advance(task)
        return
    start_time = last_time = time.monotonic()
    for count, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if now - last_time >= REPORT_INTERVAL_SEC and num_done + count < total:
            last_time, speed = now, count / (now - start_time)
            left = format_time((total - num_done - count) / speed)
            say(f"{num_done + count:,} of {total:,} images, {speed:.0f} images/s, {left} left")


# -- Writing -----------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of the images."""

    sources: dict[str, str] = field(default_factory=dict)  # name in the zip -> name in the source
    source_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # name in the zip -> width, height
    refused: dict[str, str] = field(default_factory=dict)  # name in the source -> reason
    source_crcs: list[str] = field(default_factory=list)  # "crc32 name" of every file that was read
    side: int = 0  # pixels
    first: str = ""  # how the first image came by this side
    num_continued: int = 0  # files that an earlier process had done

    def add(self, finished: Finished) -> None:
        if finished.source_crc is not None:
            self.source_crcs.append(f"{finished.source_crc:08x} {finished.name}\n")
        if finished.reason:
            self.refused[finished.name] = finished.reason
            return
        name = image_name(len(self.sources))
        self.sources[name] = finished.name
        self.source_sizes[name] = (finished.width, finished.height)

    @property
    def source_hash(self) -> str:
        """SHA-256 over the sorted checksums and names: equal for equal content, in whatever order it was found."""
        text = "".join(sorted(self.source_crcs))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def check_side(outcome: Outcome, result: Converted, recipe: Recipe) -> None:
    """All images have one side, a power of two.

    Raises:
        UserError: this one differs.
    """
    size = f"{shown(result.name)} is {result.side}x{result.side} after --transform={recipe.transform}"
    outcome.first, outcome.side = outcome.first or size, outcome.side or result.side
    remedy = f"give --resolution={nearest_sides(outcome.side)}"
    if not is_valid_side(outcome.side):
        raise UserError(f"{size}; expected a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION}: {remedy}")
    if result.side != outcome.side:
        raise UserError(f"{outcome.first}, but {size}; expected one size for all: {remedy}")


def is_valid_side(side: int) -> bool:
    return MIN_RESOLUTION <= side <= MAX_RESOLUTION and side & (side - 1) == 0


def nearest_sides(side: int) -> str:
    """'64', or '64 or 128' for a side between these powers of two."""
    below = 1 << (min(max(side, MIN_RESOLUTION), MAX_RESOLUTION).bit_length() - 1)
    return f"{below} or {2 * below}" if below < side < MAX_RESOLUTION else f"{below}"


def write_images(
    partial: PartialZip,
    source: Source,
    files: Sequence[ImageFile],
    recipe: Recipe,
    workers: int,
    say: Callable[[str], None],
) -> tuple[Outcome, Recipe]:
    """Convert all files into `partial`; returns also the recipe with its channels decided.

    'auto' hopes for grey and starts again in RGB when an image has colour, most often before it began.
    """
    attempts = [recipe.channels] if recipe.channels != "auto" else ["auto", "rgb"]
    if partial.channels in attempts:
        attempts = attempts[attempts.index(partial.channels) :]
    elif recipe.channels == "auto" and convert_file(files[0], recipe).has_color:
        attempts = ["rgb"]
    for channels in attempts:
        attempt = replace(recipe, channels=channels)
        outcome = _write_attempt(partial, source, files, attempt, workers, say)
        if outcome is not None:
            break
    assert outcome is not None
    if not outcome.sources:
        name, reason = next(iter(outcome.refused.items()))
        none = f"none of its {len(files):,} images can be used"
        raise UserError(f"--source={source.path}: {none}; the first, {shown(name)}: {reason}")
    return outcome, attempt


def _write_attempt(
    partial: PartialZip,
    source: Source,
    files: Sequence[ImageFile],
    recipe: Recipe,
    workers: int,
    say: Callable[[str], None],
) -> Outcome | None:
    """None when recipe.channels is 'auto' and an image has colour."""
    outcome = Outcome()
    done = partial.begin(recipe.channels)
    for finished in done:
        outcome.add(finished)
    outcome.num_continued = len(done)
    if done:
        say(f"Going on: {len(done):,} of {len(files):,} images are done already.")
    left = files[len(done) :]
    first_good = next((i for i, finished in enumerate(done) if not finished.reason), None)
    if first_good is not None:  # how large the first image came out is not in the journal
        check_side(outcome, convert_file(files[first_good], recipe), recipe)
    workers = min(workers, 1 + len(left) // MIN_FILES_PER_WORKER)
    converted = convert_files(left, recipe, workers, source.files_per_task)
    with closing(with_progress(converted, len(done), len(files), say)) as results:
        for result in results:
            if not result.reason:
                check_side(outcome, result, recipe)
                if result.has_color:
                    return None
            crc = zlib.crc32(result.png)
            finished = Finished(
                result.name, result.source_crc, *result.source_size, crc, len(result.png), result.reason
            )
            partial.add(finished, result.png)
            outcome.add(finished)
    return outcome


# -- What is recorded --------------------------------------------------------------------------------------------------


def partial_key(source: Source, files: Sequence[ImageFile], options: dict[str, Any]) -> str:
    """Hash of all that decides the bytes of the zip: a partial zip is only gone on with when it is the same."""
    digest = hashlib.sha256()
    codecs = [PIL.__version__, features.version("zlib"), features.version("zlib_ng")]
    stamps = [file_stamp(path) for path in source.containers]
    digest.update(json.dumps([PARTIAL_FORMAT, codecs, options, stamps], sort_keys=True, default=str).encode())
    for file in files:
        digest.update(f"{file.name}\0{file.stamp()}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def describe(source: Source, labels: Labels, recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """The content of dataset.json. Credits are passed on, as licences demand."""
    table = None
    class_counts = None
    if labels.by_name is not None:
        table = [[name, labels.by_name[original]] for name, original in outcome.sources.items()]
        counts = Counter(number for _, number in table)
        class_counts = [counts[number] for number in range(labels.num_classes)]
    attributes = {
        name: source.attributes[original] for name, original in outcome.sources.items() if original in source.attributes
    }
    return {
        "labels": table,
        "num_classes": labels.num_classes,
        "class_names": labels.class_names,
        "class_counts": class_counts,
        "resolution": outcome.side,
        "channels": 3 if recipe.channels == "rgb" else 1,
        "transform": recipe.transform,
        "crop": "center" if recipe.transform == "center-crop" else None,
        "filter": recipe.resize_filter,
        "pad_color": recipe.pad_color if recipe.transform == "pad" else None,
        "background": recipe.background,
        "format": source.format,
        "split": source.split,
        "source_hash": outcome.source_hash,
        **source.described,
        **({"attributes": attributes} if attributes else {}),
        "sources": outcome.sources,
        "source_sizes": outcome.source_sizes,
        "refused": source.refused | outcome.refused,
    }


def coarse_images(metadata: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Images whose short side is below MIN_RESOLUTION, or that were enlarged more than MAX_ENLARGED times.

    Returns:
        Name in the source -> width and height there, pixels.
    """
    limit = max if metadata["transform"] == "pad" else min  # the side that is scaled to the resolution
    return {
        metadata["sources"][name]: size
        for name, size in metadata["source_sizes"].items()
        if min(size) < MIN_RESOLUTION or limit(size) * MAX_ENLARGED < metadata["resolution"]
    }


def classes_text(metadata: dict[str, Any]) -> str:
    """'9 classes', or '9 classes, 1 with images'."""
    num_classes = metadata["num_classes"]
    num_filled = sum(count > 0 for count in metadata["class_counts"] or [])
    rest = f", {num_filled:,} with images" if num_filled < num_classes else ""
    return f"{num_classes:,} classes{rest}"


def make_report(
    source: Source, metadata: dict[str, Any], outcome: Outcome, options: dict[str, Any], wall_sec: float
) -> dict[str, Any]:
    """The content of convert-report.json: what was asked for, and what became of every file that is not in the zip."""
    num_images = len(outcome.sources)
    return {
        "source": str(source.path),
        "format": source.format,
        "split": source.split,
        "options": options,
        "images": num_images,
        "classes": metadata["num_classes"],
        "resolution": outcome.side,
        "channels": metadata["channels"],
        "source_hash": metadata["source_hash"],
        "refused": metadata["refused"],
        "skipped": dict(source.skipped),
        "coarse": coarse_images(metadata),
        "continued_from": outcome.num_continued,
        "seconds": round(wall_sec, 3),
        "images_per_sec": round((num_images + len(outcome.refused) - outcome.num_continued) / wall_sec, 1),
    }
