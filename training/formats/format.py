"""What a format of data sets is: how it is recognised, and how it is opened."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from torch_utils.command_line import UserError, nearest
from torch_utils.images import WHITE, Color
from training.image_source import Source


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say about a source. None: not said."""

    split: str | None = None
    list_file: Path | None = None
    objects: tuple[int, int] | None = None  # fewest and most objects in an image
    min_object_area: float | None = None  # of the image, 0 to 1
    emoji_list: Path | None = None
    resolution: int | None = None  # pixels; for what is drawn
    background: Color = WHITE


# Field of SourceOptions -> its flag, for those that count with some formats only.
FLAGS = {
    "split": "--split",
    "list_file": "--list",
    "objects": "--objects",
    "min_object_area": "--min-object-area",
    "emoji_list": "--emoji-list",
}


@dataclass(frozen=True)
class Format:
    """One way in which data sets are laid out."""

    name: str
    layout: str  # what the path has to hold, for people
    recognises: Callable[[Path], bool]  # by a few names; nothing large is read
    open: Callable[[Path, SourceOptions], Source]
    options: Collection[str] = ()  # fields of SourceOptions that count
    looser: bool = False  # opens more than it recognises, when asked for by name
    fits: Callable[[SourceOptions], bool] = lambda options: True  # whether 'auto' may take it with these options


def choose_split(path: Path, wanted: str | None, there: Collection[str]) -> str:
    """The split to convert: the one asked for, else train, else the only one.

    Raises:
        UserError: it isn't there; the message names those that are.
    """
    names = sorted(there)
    if wanted is None and "train" not in there and len(names) == 1:
        return names[0]
    if (wanted or "train") not in there:
        given = f"--split={wanted or 'train'}" + ("" if wanted else " (the default)")
        listed = ", ".join(names) or "none"
        raise UserError(f"{given}: {path} has no such split; there are: {listed}.{nearest(wanted or 'train', names)}")
    return wanted or "train"


def sub_folders(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones left out."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def missing_package(what: str, package: str) -> UserError:
    """For a format whose optional package is not installed."""
    return UserError(f"{what} needs the package {package}, which is not installed: pip install {package}")
