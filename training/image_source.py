"""What a source of images holds: its files, found once and readable from any process, and what is known about each.

Folders and zips are opened here; the other formats (`training/formats/`) fill the same `Source`.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from PIL import Image

from torch_utils import images
from torch_utils.command_line import UserError
from torch_utils.images import ImageRefused
from training.archive import Member, list_zip, read_member

MAX_CLASSES = 1_000_000  # a table of all of them is written and kept
CREDITS = ("attribution", "license")  # keys of dataset.json that are passed on, as licences demand
PASSED_ON = (*CREDITS, "class_descriptions", "categories")  # from the dataset.json of a source

Value = str | int | float | bool | list[str] | list[int]
Attributes = dict[str, Value]  # what is known about one image beside its class


class ImageFile(Protocol):
    """One image of a source, small enough to be sent to a worker process."""

    @property
    def name(self) -> str:
        """Unique in the source, parts joined by '/'."""
        ...

    def read(self) -> bytes:
        """The content of an image file.

        Raises:
            ImageRefused: it can't be read whole.
        """
        ...

    def stamp(self) -> str:
        """Another one when the content may have changed; found without reading it. '' where Source.containers say."""
        ...


class SourceFile(NamedTuple):
    """One file, in a folder or in a zip."""

    name: str  # relative to the source, parts joined by '/'
    path: str  # the file, or the zip that holds it
    member: Member | None = None

    def read(self) -> bytes:
        return images.read_file(self.path) if self.member is None else _read_member(self.path, self.member)

    def stamp(self) -> str:
        return file_stamp(self.path) if self.member is None else f"{self.member.crc} {self.member.size}"


class ArrayImage(NamedTuple):
    """One image of an archive of raw pixels, kept in memory (CIFAR: 150 MB in all, MNIST 47 MB)."""

    name: str
    pixels: bytes  # uint8 [H, W] or [H, W, 3]
    shape: tuple[int, ...]

    def read(self) -> bytes:
        height, width = self.shape[:2]
        mode = "L" if len(self.shape) == 2 else "RGB"
        return images.encode_png(Image.frombytes(mode, (width, height), self.pixels))

    def stamp(self) -> str:
        return ""


@dataclass
class Labels:
    """The class of every image of a source, and where it comes from."""

    decision: str  # a sentence for the user
    by_name: dict[str, int] | None = None
    num_classes: int = 0
    class_names: list[str] | None = None


@dataclass
class Source:
    """What a folder, zip or archive holds."""

    path: Path
    files: Sequence[ImageFile] = field(default_factory=list)  # sorted by name
    skipped: Counter[str] = field(default_factory=Counter)  # other files by ending; 'hidden' ones
    refused: dict[str, str] = field(default_factory=dict)  # what can't be read: reason
    metadata: dict[str, Any] | None = None  # dataset.json
    format: str = "folder"
    split: str | None = None
    labels: Labels | None = None  # None: as its dataset.json or its folders say
    attributes: dict[str, Attributes] = field(default_factory=dict)  # by name of the file
    described: dict[str, Any] = field(default_factory=dict)  # further keys of the new dataset.json
    containers: list[Path] = field(default_factory=list)  # files that hold many images
    files_per_task: int = 8  # larger where neighbours are cheap to read together


def is_inside(name: str) -> bool:
    """Whether a path that a list gives stays in the folder it is relative to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def file_stamp(path: str | Path) -> str:
    """Size and time of the last change; 'gone' when there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes seconds
    except OSError:
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns}"


# -- Folders and zips --------------------------------------------------------------------------------------------------


def open_source(path: Path) -> Source:
    """List the images of a folder (with all sub-folders) or of a zip. Hidden files and other files are only counted.

    Raises:
        UserError: missing, neither folder nor zip, without images, or with a damaged dataset.json.
    """
    source = Source(path)
    if path.is_dir():
        found = list_folder(path, source.refused)
    elif path.exists():
        found = _list_zip(path)
    else:
        raise UserError(f"--source={path} does not exist; expected a folder or a zip of images")
    for file in found:
        if file.name == "dataset.json":
            source.metadata = _read_metadata(file, path)
    keep_images(source, (file for file in found if file.name != "dataset.json"))
    if source.metadata is not None:
        _take_over(source, source.metadata)
    else:
        source.attributes = _nested_folders(source.files)
    return source


def keep_images(source: Source, found: Iterable[SourceFile]) -> None:
    """Fill `source.files` with the images by their ending, and count the rest.

    Raises:
        UserError: there are none.
    """
    endings = images.image_extensions()
    kept = []
    for file in found:
        name = PurePosixPath(file.name)
        if any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
            source.skipped["hidden"] += 1
        elif name.suffix.lower() in endings:
            kept.append(file)
        else:
            source.skipped[name.suffix.lower() or "no ending"] += 1
    if not kept:
        others = f"; it holds other files: {count_text(source.skipped)}" if source.skipped else ""
        raise UserError(f"--source={source.path} holds no images (files that end in .png, .jpg, .webp, ...){others}")
    source.files = kept


def list_folder(folder: Path, refused: dict[str, str], prefix: str = "") -> list[SourceFile]:
    """All files below `folder`, sorted by name, `prefix` before it. Folders that can't be read go to `refused`."""
    return sorted(_walk_folder(folder, prefix, frozenset(), refused))


def _walk_folder(folder: Path, prefix: str, above: frozenset[str], refused: dict[str, str]) -> Iterator[SourceFile]:
    """All files below `folder`. Links are followed, except to a folder that encloses them."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as listing:
            entries = list(listing)
    except OSError as error:
        refused[prefix or "."] = f"the folder can't be read ({error.strerror})"
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk_folder(Path(entry.path), f"{prefix}{entry.name}/", above | {real}, refused)
        else:
            yield SourceFile(prefix + entry.name, entry.path)


def _list_zip(path: Path) -> list[SourceFile]:
    try:
        members = list_zip(path)
    except ValueError as error:
        raise UserError(f"--source={path} is neither a folder nor a zip that can be read ({error})") from None
    return [SourceFile(name, str(path), member) for name, member in sorted(members.items())]


def _read_member(path: str, member: Member) -> bytes:
    """Workers get the place of a file: each reading the directory of a large zip again would not fit."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ImageRefused(f"the zip can't be opened ({error.strerror})") from None
    try:
        return read_member(descriptor, member)
    finally:
        os.close(descriptor)


def _read_metadata(file: SourceFile, source: Path) -> dict[str, Any]:
    where = f"--source={source}: its dataset.json"
    try:
        content = json.loads(file.read())
    except (ValueError, RecursionError) as error:  # ImageRefused is one, too; brackets may be nested without end
        raise UserError(f"{where} can't be read ({error}); mend or remove it") from None
    if not isinstance(content, dict):
        raise UserError(f'{where} is a {type(content).__name__}; expected {{"labels": [...]}}')
    return content


def _take_over(source: Source, metadata: dict[str, Any]) -> None:
    """Attributes, split and credits of a data set that was converted before."""
    table = metadata.get("attributes") or {}
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise UserError(
            f'--source={source.path}: its dataset.json needs "attributes": {{"name.png": {{"key": value}}}}; mend it'
        )
    names = {file.name for file in source.files}
    source.attributes = {name: row for name, row in table.items() if name in names}
    source.split = metadata["split"] if isinstance(metadata.get("split"), str) else None
    source.described = {key: metadata[key] for key in PASSED_ON if metadata.get(key)}


class ClassFolders(NamedTuple):
    """The folders that may be classes: the first ones in which the images differ."""

    by_name: dict[str, str]  # file -> folder; without the files that lie outside
    nested: dict[str, str]  # file -> the folders below that one, joined by '/', where there are any


def class_folders(files: Sequence[ImageFile]) -> ClassFolders:
    """Folders that all images share are passed over."""
    folders = [file.name.split("/")[:-1] for file in files]
    shared = zip(min(folders), max(folders), strict=False)  # what the first and the last share, all share
    depth = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], shared))
    below = {file.name: parts[depth:] for file, parts in zip(files, folders, strict=True) if len(parts) > depth}
    nested = {name: "/".join(parts[1:]) for name, parts in below.items() if len(parts) > 1}
    return ClassFolders({name: parts[0] for name, parts in below.items()}, nested)


def _nested_folders(files: Sequence[ImageFile]) -> dict[str, Attributes]:
    """What lies below the folders that are classes is kept as `subclass`."""
    found = class_folders(files)
    return {name: {"subclass": below} for name, below in found.nested.items() if len(found.by_name) == len(files)}


# -- Labels in a dataset.json ------------------------------------------------------------------------------------------


def class_numbers(
    metadata: dict[str, Any], names: Sequence[str], where: str, remedy: str
) -> tuple[dict[str, int], int]:
    """The class of every file of a `dataset.json` with labels (numbers or one-hot lists), and how many classes it has.

    Raises:
        UserError: begins with `where`, ends with `remedy`.
    """
    table = metadata["labels"]
    try:
        by_name = {str(name).replace("\\", "/"): _class_number(label) for name, label in table}
        one_hot_width = max((len(label) for _, label in table if isinstance(label, list)), default=0)
    except (TypeError, ValueError):
        raise UserError(
            f'{where} needs "labels": [["name.png", class number], ...] or one-hot lists; {remedy}'
        ) from None
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(f"{where} has no label for {len(missing):,} images, first {shown(missing[0])}; {remedy}")
    largest = max(by_name.values())
    num_classes = metadata.get("num_classes") or max(one_hot_width, largest + 1)
    if not isinstance(num_classes, int) or num_classes <= largest:
        raise UserError(f"{where} says num_classes={num_classes}, but its labels go to {largest}; {remedy}")
    if num_classes > MAX_CLASSES:
        raise UserError(f"{where} has {num_classes} classes, at most {MAX_CLASSES:,} can be used; {remedy}")
    return by_name, num_classes


def _class_number(label: Any) -> int:
    if isinstance(label, list) and sorted(label) == [0] * (len(label) - 1) + [1]:
        return label.index(1)
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(label)
    return label


# -- Words -------------------------------------------------------------------------------------------------------------


def shown(name: str) -> str:
    """A file name for one line of text: line breaks and bytes that are no text become escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def count_text(counts: Counter[str]) -> str:
    """'.txt 9, hidden 3': the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{shown(name)} {count:,}" for name, count in ordered)


def first_of(names: Sequence[str]) -> str:
    """'a, b, c, d, e, ... (7 more)'."""
    rest = f", ... ({len(names) - 5:,} more)" if len(names) > 5 else ""
    return ", ".join(shown(name) for name in names[:5]) + rest
