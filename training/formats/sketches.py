"""Sketches as labelled folders: TU-Berlin, the Sketchy database, and others of their form.

    TU-Berlin   png/<class>/*.png, and filelist.txt
    Sketchy     256x256/{photo,sketch}/<variant>/<class>/*; attributes `domain` and `variant`
    others      <class>/*, when asked for by --format=sketches

Source: Eitz et al., How Do Humans Sketch Objects?, SIGGRAPH 2012; Sangkloy et al., The Sketchy Database, SIGGRAPH 2016.
"""

import re
from pathlib import Path

from torch_utils.command_line import UserError
from training.formats.format import Format, SourceOptions, sub_folders
from training.image_source import Source, keep_images, list_folder
from training.labelling import labels_of_words

VARIANT = re.compile(r"tx_\d{12}")  # how Sketchy names the ways in which it places and scales a picture
DOMAINS = ("photo", "sketch")


def recognises(path: Path) -> bool:
    return path.is_dir() and (_is_sketchy(_root(path)) or _is_tu_berlin(path))


def open_sketches(path: Path, options: SourceOptions) -> Source:
    root = _root(path)
    source = Source(path)
    if _is_sketchy(root):
        for domain in DOMAINS:
            if (root / domain).is_dir():
                source.files = [*source.files, *list_folder(root / domain, source.refused, f"{domain}/")]
        keep_images(source, source.files)  # type: ignore[arg-type]
        depth = 2
    else:
        folder = path / "png" if _is_tu_berlin(path) and (path / "png").is_dir() else path
        keep_images(source, list_folder(folder, source.refused))
        depth = 0
    parts = {file.name: file.name.split("/") for file in source.files}
    outside = next((name for name, words in parts.items() if len(words) < depth + 2), None)
    if outside is not None:
        raise UserError(f"--format=sketches: {outside} lies in no class folder; expected <class>/image in {path}")
    if depth:
        source.attributes = {name: {"domain": words[0], "variant": words[1]} for name, words in parts.items()}
    source.labels = labels_of_words({name: words[depth] for name, words in parts.items()}, "{} classes of sketches")
    return source


def _root(path: Path) -> Path:
    return path / "256x256" if (path / "256x256").is_dir() else path


def _is_sketchy(root: Path) -> bool:
    folders = [root / domain for domain in DOMAINS if (root / domain).is_dir()]
    return bool(folders) and all(any(VARIANT.fullmatch(name) for name in sub_folders(folder)) for folder in folders)


def _is_tu_berlin(path: Path) -> bool:
    return any((folder / "filelist.txt").is_file() for folder in (path, path / "png"))


FORMAT = Format(
    "sketches",
    "photo/ and sketch/ of tx_... folders (Sketchy), or filelist.txt and class folders (TU-Berlin)",
    recognises,
    open_sketches,
    looser=True,
)
