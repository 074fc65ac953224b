"""What a folder or zip of images holds: its files, found once and readable from any process, and its labels."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from torch_utils import images
from torch_utils.command_line import UserError
from torch_utils.images import ImageRefused
from training.archive import Member, list_zip, read_member

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}  # folders that are not classes


class SourceFile(NamedTuple):
    """One file, in a folder or in a zip."""

    name: str  # relative to the source, parts joined by '/'
    path: str  # the file, or the zip that holds it
    member: Member | None = None

    def read(self) -> bytes:
        """The content.

        Raises:
            ImageRefused: it can't be read whole.
        """
        return images.read_file(self.path) if self.member is None else _read_member(self.path, self.member)


@dataclass
class Source:
    """What a folder or zip holds."""

    path: Path
    files: list[SourceFile] = field(default_factory=list)  # images by their ending, sorted by name
    skipped: Counter[str] = field(default_factory=Counter)  # other files by ending; 'hidden' ones
    refused: dict[str, str] = field(default_factory=dict)  # folders that can't be read: reason
    metadata: dict[str, Any] | None = None  # dataset.json


@dataclass
class Labels:
    """The class of every image of a source, and where it comes from."""

    decision: str  # a sentence for the user
    by_name: dict[str, int] | None = None
    num_classes: int = 0
    class_names: list[str] | None = None


# -- Files -------------------------------------------------------------------------------------------------------------


def open_source(path: Path) -> Source:
    """List the images of a folder (with all sub-folders) or of a zip. Hidden files and other files are only counted.

    Raises:
        UserError: missing, neither folder nor zip, without images, or with a damaged dataset.json.
    """
    source = Source(path)
    if path.is_dir():
        found = sorted(_walk_folder(path, "", frozenset(), source.refused))
    elif path.exists():
        found = _list_zip(path)
    else:
        raise UserError(f"--source={path} does not exist; expected a folder or a zip of images")

    endings = images.image_extensions()
    for file in found:
        name = PurePosixPath(file.name)
        if file.name == "dataset.json":
            source.metadata = _read_metadata(file, path)
        elif any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
            source.skipped["hidden"] += 1
        elif name.suffix.lower() in endings:
            source.files.append(file)
        else:
            source.skipped[name.suffix.lower() or "no ending"] += 1
    if not source.files:
        others = f"; it holds other files: {count_text(source.skipped)}" if source.skipped else ""
        raise UserError(f"--source={path} holds no images (files that end in .png, .jpg, .webp, ...){others}")
    return source


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
    except ValueError as error:  # ImageRefused is one, too
        raise UserError(f"{where} can't be read ({error}); mend or remove it") from None
    if not isinstance(content, dict):
        raise UserError(f'{where} is a {type(content).__name__}; expected {{"labels": [...]}}')
    return content


# -- Labels ------------------------------------------------------------------------------------------------------------


def decide_labels(source: Source, mode: str) -> Labels:
    """The class of every image: from the source's dataset.json, else from its top-level folders, else none.

    Folders that all images share are passed over. Class numbers are the positions of the sorted folder names, the order
    of torchvision's ImageFolder.

    Args:
        mode: 'auto'; 'folders': these or an error; 'none'.

    Raises:
        UserError: labels were asked for and are not there, or those in dataset.json are incomplete.
    """
    if mode == "none":
        return Labels("none (--labels=none)")
    if mode == "auto" and source.metadata is not None:
        return _labels_from_metadata(source.path, source.files, source.metadata)

    folders = [file.name.split("/")[:-1] for file in source.files]
    shared = zip(min(folders), max(folders), strict=False)  # what the first and the last share, all share
    depth = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], shared))
    inside = {file.name: parts[depth] for file, parts in zip(source.files, folders, strict=True) if len(parts) > depth}
    names = sorted(set(inside.values()))
    why_not = None
    if not names:
        why_not = "the images are not sorted into sub-folders"
    elif len(inside) < len(source.files):
        outside = next(file.name for file in source.files if file.name not in inside)
        why_not = f"{shown(outside)} is in none of the folders {_first_of(names)}"
    elif mode == "auto" and all(re.fullmatch(r"\d{5}", name) for name in names):
        why_not = f"the folders {_first_of(names)} look like numbered parts; --labels=folders makes them classes"
    elif mode == "auto" and all(name.lower() in SPLIT_NAMES for name in names):
        why_not = f"the folders {_first_of(names)} look like splits: convert one at a time, or --labels=folders"
    if why_not and mode == "folders":
        raise UserError(f"--labels=folders: {why_not}; expected all images of {source.path} in two or more sub-folders")
    if why_not:
        return Labels(f"none, because {why_not}")
    numbers = {name: i for i, name in enumerate(names)}
    return Labels(
        decision=f"{len(names)} classes from the top-level folders: {_first_of(names)}",
        by_name={name: numbers[folder] for name, folder in inside.items()},
        num_classes=len(names),
        class_names=names,
    )


def _labels_from_metadata(path: Path, files: list[SourceFile], metadata: dict[str, Any]) -> Labels:
    """Class numbers, or one-hot lists, from the dataset.json of the source."""
    table = metadata.get("labels")
    if table is None:
        return Labels("none, as in the dataset.json of the source")
    where = f"--source={path}: its dataset.json"
    remedy = "mend it, or convert with --labels=folders or --labels=none"
    by_name, num_classes = class_numbers(metadata, [file.name for file in files], where, remedy)
    names = metadata.get("class_names")
    class_names = names if isinstance(names, list) and len(names) == num_classes else None
    return Labels(f"{num_classes} classes from the dataset.json of the source", by_name, num_classes, class_names)


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


def _first_of(names: list[str]) -> str:
    rest = f", ... ({len(names) - 5:,} more)" if len(names) > 5 else ""
    return ", ".join(shown(name) for name in names[:5]) + rest
