"""Parquet files with a column of images, as Hugging Face's `datasets` writes them.

The image column is a struct {bytes, path} or plain binary. A column `label` of whole numbers becomes the class, with
the names that the schema's metadata (key `huggingface`) gives; all other plain columns become attributes. Files named
train-00000-of-00004.parquet, or lying in train/, belong to the split train.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch_utils.command_line import UserError
from torch_utils.images import ImageRefused
from training.formats.format import Format, SourceOptions, choose_split, missing_package
from training.image_source import MAX_CLASSES, Attributes, Labels, Source
from training.labelling import labels_of_words

SPLIT = re.compile(r"(train|validation|valid|val|test)(?=[-._/]|$)")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
IMAGE_COLUMNS = ("image", "img", "png", "jpg", "jpeg", "webp")  # preferred in this order where several could be
ROWS_PER_READ = 64  # encoded images in memory at a time
FILES_PER_TASK = 128  # a worker reads a stretch of a row group, not all of them


class ParquetImage(NamedTuple):
    """One row."""

    name: str
    path: str
    column: str
    row_group: int
    row: int  # in the row group

    def read(self) -> bytes:
        try:
            value = _read_row(self)
        except ImportError:
            raise missing_package(self.path, "pyarrow") from None
        except Exception as error:  # damaged files make pyarrow raise nearly every type there is
            _open_groups.clear()
            raise ImageRefused(f"the row can't be read ({error})") from None
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                raise ImageRefused(f"the row holds only a path, {value['path']}; embed the images when saving")
            value = value.get("bytes")
        if value is None:
            raise ImageRefused("the row holds no image (null)")
        return bytes(value)

    def stamp(self) -> str:
        return ""


class _OpenGroup:
    """Walks through a row group; going back starts it again. Never used after a fork: see `_open_groups`."""

    def __init__(self, file: ParquetImage) -> None:
        self.key = (os.getpid(), file.path, file.row_group, file.column)
        # Buffered and not read ahead: a row group of any size takes the memory of a few pages.
        self.parquet = _parquet_file(file.path)
        self.batches = self.parquet.iter_batches(
            ROWS_PER_READ, row_groups=[file.row_group], columns=[file.column], use_threads=False
        )
        self.start, self.batch = 0, next(self.batches)

    def value(self, row: int) -> Any:
        while row >= self.start + self.batch.num_rows:
            self.start += self.batch.num_rows
            self.batch = next(self.batches)
        return self.batch.column(0)[row - self.start].as_py()


_open_groups: list[_OpenGroup] = []  # at most one: files are read in order


def _read_row(file: ParquetImage) -> Any:
    key = (os.getpid(), file.path, file.row_group, file.column)
    if not _open_groups or _open_groups[0].key != key or file.row < _open_groups[0].start:
        _open_groups[:] = [_OpenGroup(file)]
    return _open_groups[0].value(file.row)


def _parquet_file(path: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


# -- Opening -----------------------------------------------------------------------------------------------------------


def recognises(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".parquet"
    return next(_walk(path), None) is not None


def open_parquet(path: Path, options: SourceOptions) -> Source:
    try:
        import pyarrow.parquet  # noqa: F401 - asked for before anything else is said
    except ImportError:
        raise missing_package(f"--source={path} (parquet)", "pyarrow") from None
    root = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(_walk(path))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        match = SPLIT.match(file.relative_to(root).as_posix().removeprefix("data/"))
        by_split.setdefault(match[1] if match else "", []).append(file)
    split = next(iter(by_split))
    if by_split.keys() != {""} or options.split is not None:
        split = choose_split(path, options.split, [name for name in by_split if name])
    source = Source(path, split=split or None, containers=by_split[split], files_per_task=FILES_PER_TASK)
    images: list[ParquetImage] = []
    schema = None
    for file in by_split[split]:
        try:
            found = _parquet_file(str(file))
            schema = schema or found.schema_arrow
            column = _image_column(found.schema_arrow, file)
            rows, attributes = _list_rows(found, file.relative_to(root).with_suffix("").as_posix(), str(file), column)
        except UserError:
            raise
        except Exception as error:  # damaged files make pyarrow raise nearly every type there is
            source.refused[file.relative_to(root).as_posix()] = f"can't be read as parquet ({error})"
            continue
        images += rows
        source.attributes |= attributes
    if not images or schema is None:
        reason = next(iter(source.refused.values()), "the files have no rows")
        raise UserError(f"--source={path} holds no images: {reason}; get it again")
    source.files = images
    source.labels = _labels(source, schema)
    return source


def _walk(path: Path) -> Iterator[Path]:
    """The parquet files of a folder and its data/ or split folders: two levels, so that nothing large is searched."""
    yield from path.glob("*.parquet")
    yield from path.glob("*/*.parquet")


def _image_column(schema: Any, file: Path) -> str:
    """The struct with a field `bytes`, or the binary column."""
    import pyarrow.types as kinds

    def holds_images(kind: Any) -> bool:
        is_struct = kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0
        return bool(is_struct or kinds.is_binary(kind) or kinds.is_large_binary(kind))

    names = [str(field.name) for field in schema if holds_images(field.type)]
    names.sort(key=lambda name: IMAGE_COLUMNS.index(name) if name in IMAGE_COLUMNS else len(IMAGE_COLUMNS))
    if not names:
        raise UserError(
            f"{file} has no column of images (a struct with bytes, or binary); it has: {', '.join(schema.names)}"
        )
    return names[0]


def _list_rows(parquet: Any, stem: str, path: str, column: str) -> tuple[list[ParquetImage], dict[str, Attributes]]:
    """The rows of a file, and what its plain columns say about each. Images are not read."""
    import pyarrow.types as kinds

    plain = [
        field.name
        for field in parquet.schema_arrow
        if field.name != column
        and (
            kinds.is_integer(field.type)
            or kinds.is_floating(field.type)
            or kinds.is_boolean(field.type)
            or kinds.is_string(field.type)
            or kinds.is_large_string(field.type)
        )
    ]
    images: list[ParquetImage] = []
    attributes: dict[str, Attributes] = {}
    for group in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(group).num_rows
        table = parquet.read_row_group(group, columns=plain, use_threads=False).to_pylist() if plain else []
        for row in range(count):
            name = f"{stem}/{len(images):07d}"
            images.append(ParquetImage(name, path, column, group, row))
            known = {key: value for key, value in table[row].items() if value is not None} if table else {}
            if known:
                attributes[name] = known
    return images, attributes


def _labels(source: Source, schema: Any) -> Labels:
    """The first of LABEL_COLUMNS that every row has; its values leave the attributes."""
    column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if column is None:
        return Labels(f"none: there is no column {' or '.join(LABEL_COLUMNS[:2])}")
    values = {name: row.get(column) for name, row in source.attributes.items()}
    if len(values) < len(source.files) or any(value is None for value in values.values()):
        return Labels(f"none: some rows have no {column}")
    for row in source.attributes.values():
        del row[column]
    source.attributes = {name: row for name, row in source.attributes.items() if row}
    names = _class_names(schema, column)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values.values()):
        return labels_of_words({name: str(value) for name, value in values.items()}, f"{{}} classes from {column}")
    numbers: dict[str, int] = {name: value for name, value in values.items() if isinstance(value, int)}
    smallest, largest = min(numbers.values()), max(numbers.values())
    if smallest < 0 or (names and largest >= len(names)):
        limit = f"0 to {len(names) - 1}" if names else "numbers from 0"
        raise UserError(
            f"--source={source.path}: its column {column} goes from {smallest} to {largest}, expected {limit}; "
            "convert with --labels=none, or another --split"
        )
    if largest >= MAX_CLASSES:
        raise UserError(
            f"--source={source.path}: its column {column} goes to {largest}, expected less than {MAX_CLASSES:,}; "
            "convert with --labels=none"
        )
    num_classes = len(names) if names else largest + 1
    return Labels(f"{num_classes} classes from the column {column}", numbers, num_classes, list(names) or None)


def _class_names(schema: Any, column: str) -> Sequence[str]:
    """What Hugging Face's metadata calls the classes; [] where it does not say."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = content["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [str(name) for name in names]


FORMAT = Format(
    "parquet",
    "*.parquet with a column of images",
    recognises,
    open_parquet,
    options=("split",),
)
