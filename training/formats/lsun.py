"""LSUN: an lmdb for every category and split, whose values are encoded images (webp or jpg) and whose keys name them.

Source: Yu et al., LSUN, arXiv 1506.03365.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch_utils.command_line import UserError
from torch_utils.images import ImageRefused
from training.formats.format import Format, SourceOptions, choose_split, missing_package, sub_folders
from training.image_source import Labels, Source
from training.labelling import labels_of_words

DATABASE = "data.mdb"
NAMED = re.compile(r"(?P<category>.+?)_(?P<split>train|val|test)(_lmdb)?")  # bedroom_train_lmdb


class LmdbImage(NamedTuple):
    """One value of an lmdb."""

    name: str
    folder: str
    key: bytes

    def read(self) -> bytes:
        try:
            with _environment(self.folder).begin() as transaction:
                value = transaction.get(self.key)
        except UserError:
            raise
        except Exception as error:  # lmdb's own errors have no common base that can be named without importing it
            raise ImageRefused(f"the lmdb can't be read ({error})") from None
        if value is None:
            raise ImageRefused("no longer in the lmdb")
        return bytes(value)

    def stamp(self) -> str:
        return ""


_opened: dict[str, tuple[int, Any]] = {}  # folder -> process that opened it, lmdb


def _environment(folder: str) -> Any:
    """An open lmdb. One that was opened before a fork must not be used after it, so the child opens its own."""
    try:
        import lmdb
    except ImportError:
        raise missing_package(f"--source={folder} (LSUN)", "lmdb") from None
    process, environment = _opened.get(folder, (0, None))
    if process == os.getpid():
        return environment
    if environment is not None:
        environment.close()  # the child's copy; lmdb refuses to open a folder twice
    try:
        environment = lmdb.open(folder, readonly=True, lock=False, readahead=False, max_readers=1, create=False)
    except lmdb.Error as error:
        raise UserError(f"--source={folder} can't be opened as an lmdb ({error}); get it again") from None
    _opened[folder] = (os.getpid(), environment)
    return environment


def recognises(path: Path) -> bool:
    if not path.is_dir():
        return False
    return (path / DATABASE).is_file() or any((path / name / DATABASE).is_file() for name in sub_folders(path))


def open_lsun(path: Path, options: SourceOptions) -> Source:
    if (path / DATABASE).is_file():
        named = NAMED.fullmatch(path.resolve().name)
        split = named["split"] if named else None
        if options.split is not None:
            choose_split(path, options.split, [split] if split else [])
        return _make(path, {"": path}, split)
    databases = [path / name for name in sub_folders(path) if (path / name / DATABASE).is_file()]
    by_split: dict[str | None, dict[str, Path]] = {}
    for folder in databases:
        named = NAMED.fullmatch(folder.name)
        category = named["category"] if named else folder.name.removesuffix("_lmdb")
        by_split.setdefault(named["split"] if named else None, {})[category] = folder
    if None in by_split and options.split is None:
        return _make(path, by_split[None], None)
    split = choose_split(path, options.split, [name for name in by_split if name])
    return _make(path, by_split[split], split)


def _make(path: Path, folders: dict[str, Path], split: str | None) -> Source:
    """One database: no labels. Several: their categories."""
    source = Source(path, split=split)
    several = len(folders) > 1
    words: dict[str, str] = {}
    files: list[LmdbImage] = []
    for category, folder in sorted(folders.items()):
        source.containers.append(folder / DATABASE)
        for key in _keys(folder):
            name = (f"{category}/" if several else "") + key.decode("utf-8", "surrogateescape")
            files.append(LmdbImage(name, str(folder), key))
            words[name] = category
    if not files:
        raise UserError(f"--source={path}: the lmdb is empty; get it again")
    source.files = files
    if several:
        source.labels = labels_of_words(words, "{} categories, one for each lmdb")
    else:
        source.labels = Labels("none: one lmdb is one category")
    return source


def _keys(folder: Path) -> Iterator[bytes]:
    """All keys, in their order, which is sorted."""
    with _environment(str(folder)).begin() as transaction:
        for key in transaction.cursor().iternext(keys=True, values=False):
            yield bytes(key)


FORMAT = Format(
    "lsun",
    "an lmdb (data.mdb), or a folder of several such as bedroom_train_lmdb/",
    recognises,
    open_lsun,
    options=("split",),
)
