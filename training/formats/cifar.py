"""CIFAR-10 and CIFAR-100, "python version": the tar.gz as published, or unpacked.

The batches are pickles. They are read with an unpickler that knows a dozen names and refuses everything else, so that
nothing in them is executed. Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torch_utils.command_line import UserError
from training.formats.format import Format, SourceOptions, choose_split
from training.image_source import ArrayImage, Source
from training.labelling import labels_of_words

SHAPE = (32, 32, 3)  # of an image; a row of a batch is [3, 32, 32]
MAX_MEMBER_BYTES = 1 << 30  # a batch has 31 MB, CIFAR-100's train 155 MB


class _Layout(NamedTuple):
    folder: str  # in the archive
    splits: dict[str, tuple[str, ...]]  # split -> batches
    meta: str
    labels: str  # key in a batch
    names: str  # key in meta


LAYOUTS = (
    _Layout(
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        *("batches.meta", "labels", "label_names"),
    ),
    _Layout(
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        *("meta", "fine_labels", "fine_label_names"),
    ),
)
ARCHIVES = (".tar.gz", ".tgz", ".tar")


def recognises(path: Path) -> bool:
    if path.is_file():
        return path.name.startswith("cifar-10") and path.name.endswith(ARCHIVES)
    return _find_folder(path) is not None


def open_cifar(path: Path, options: SourceOptions) -> Source:
    files, ends_early = _archive_files(path) if path.is_file() else (_folder_files(path), False)
    layout = next((one for one in LAYOUTS if one.meta in files), None)
    if layout is None and ends_early:
        raise UserError(f"--source={path} ends early, before its list of classes; get it again")
    if layout is None:
        raise UserError(f"--source={path} has neither batches.meta nor meta; expected the python version of CIFAR")
    # Of an archive that is cut short what came through says nothing about the splits that it has.
    there = [name for name, some in layout.splits.items() if ends_early or any(batch in files for batch in some)]
    split = choose_split(path, options.split, there)
    source = Source(path, split=split, containers=[path] if path.is_file() else [])
    meta = _unpickle(files[layout.meta](), f"{path}: {layout.meta}")
    class_names = [_text(name) for name in _names(meta, layout.names, f"{path}: {layout.meta}")]
    coarse_key = "coarse_label_names"
    superclasses = _names(meta, coarse_key, f"{path}: {layout.meta}") if meta.get(coarse_key) else []

    batches = layout.splits[split]
    num_missing = sum(batch not in files for batch in batches)
    missing = f"{'the archive ends early: ' if ends_early else ''}{num_missing} of {len(batches)} batches are missing"
    images: list[ArrayImage] = []
    words: dict[str, str] = {}
    for batch in batches:
        if batch not in files:
            source.refused[batch] = f"{missing}; get it again"
            continue
        where = f"{path}: {batch}"
        try:
            content = _unpickle(files[batch](), where)
            names, labels, pixels = _check_batch(content, layout.labels, where, len(class_names))
            coarse = (
                _check_labels(content, "coarse_labels", where, len(superclasses), len(names)) if superclasses else []
            )
        except (UserError, OSError) as error:
            source.refused[batch] = str(error)
            continue
        for i, name in enumerate(names):
            full_name = f"{batch}/{i:05d}_{name}"
            images.append(ArrayImage(full_name, pixels[i].tobytes(), SHAPE))
            words[full_name] = class_names[labels[i]]
            if superclasses:
                source.attributes[full_name] = {"superclass": _text(superclasses[coarse[i]])}
    if not images:
        raise UserError(f"--source={path}: no batch can be read; the first, {next(iter(source.refused.values()))}")
    source.files = images
    source.labels = labels_of_words(words, f"{{}} classes from {layout.meta}", class_names)
    return source


def _check_batch(
    content: dict[str, Any], key: str, where: str, num_classes: int
) -> tuple[list[str], list[int], np.ndarray]:
    """Names, labels and pixels uint8 [N, 32, 32, 3] of a batch."""
    data = _entry(content, "data", where)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise UserError(f"{where}: its data is not uint8 [N, 3072]; get it again")
    labels = _check_labels(content, key, where, num_classes, len(data))
    names = content.get("filenames", [f"{i}.png" for i in range(len(data))])
    if not isinstance(names, list) or len(names) != len(data):
        raise UserError(f"{where}: its filenames do not fit its {len(data):,} images; get it again")
    return [_text(name) for name in names], labels, data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _names(content: dict[str, Any], key: str, where: str) -> list[str | bytes]:
    names = _entry(content, key, where)
    if not isinstance(names, list):
        raise UserError(f"{where}: its {key} is a {type(names).__name__}, expected a list of names; get it again")
    return names


def _check_labels(content: dict[str, Any], key: str, where: str, num_classes: int, count: int) -> list[int]:
    """A class number for each image of a batch."""
    labels = _entry(content, key, where)
    is_list = isinstance(labels, list | tuple) or (isinstance(labels, np.ndarray) and labels.ndim == 1)
    if not is_list or len(labels) != count or not all(_is_number(label, num_classes) for label in labels):
        raise UserError(
            f"{where}: its {key} do not fit its {count:,} images; expected a number below {num_classes} for each; "
            "get it again"
        )
    return [int(label) for label in labels]


def _is_number(label: object, num_classes: int) -> bool:
    return isinstance(label, int | np.integer) and 0 <= int(label) < num_classes


def _entry(content: dict[str, Any], key: str, where: str) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{where} is missing, or has no {key!r}; get it again")
    return content[key]


# -- Files -------------------------------------------------------------------------------------------------------------


def _wanted() -> set[str]:
    return {name for one in LAYOUTS for name in (one.meta, *(b for batches in one.splits.values() for b in batches))}


def _find_folder(path: Path) -> Path | None:
    folders = [path, *(path / one.folder for one in LAYOUTS)]
    marks = ("batches.meta", "data_batch_1", "test_batch")
    for folder in folders:
        is_100 = all((folder / name).is_file() for name in ("meta", "train"))
        if is_100 or any((folder / name).is_file() for name in marks):
            return folder
    return None


def _folder_files(path: Path) -> dict[str, Callable[[], bytes]]:
    folder = _find_folder(path) or path
    return {name: (folder / name).read_bytes for name in _wanted() if (folder / name).is_file()}


def _archive_files(path: Path) -> tuple[dict[str, Callable[[], bytes]], bool]:
    """The batches of an archive, read into memory, and whether it is cut short; nothing is unpacked to the disk."""
    found: dict[str, bytes] = {}
    ends_early = False
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                stream = archive.extractfile(member) if name in _wanted() and member.isfile() else None
                if stream is not None and member.size <= MAX_MEMBER_BYTES:
                    found[name] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if not found:
            raise UserError(f"--source={path} can't be read as a tar archive ({error}); get it again") from None
        ends_early = True
    return {name: (lambda data=data: data) for name, data in found.items()}, ends_early  # type: ignore[misc]


# -- Pickles -----------------------------------------------------------------------------------------------------------


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2; no other codec is let near the data."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused: the codec {encoding}")
    return text.encode(encoding)


def _text(value: str | bytes) -> str:
    """Python 2 pickled text as str, Python 3 tools that pack CIFAR again as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _AllowList(pickle.Unpickler):
    """Arrays and plain Python values. What a payload would need (os.system, eval, ...) is refused by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return np._core.numeric._frombuffer  # type: ignore[attr-defined]
        if module in ("builtins", "__builtin__") and name in ("bytes", "bytearray", "list", "dict", "set", "tuple"):
            return {"bytes": bytes, "bytearray": bytearray, "list": list, "dict": dict, "set": set, "tuple": tuple}[
                name
            ]
        raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}, which no batch of CIFAR needs")


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    """A pickled dictionary, its keys as text.

    Raises:
        UserError: damaged, or it asks for anything but arrays and plain values.
    """
    try:
        content = _AllowList(io.BytesIO(data), encoding="latin1").load()
        return {_text(key): value for key, value in content.items()}
    except Exception as error:  # damaged pickles raise nearly every type there is
        raise UserError(f"{where} can't be read ({error or type(error).__name__}); get it again") from None


FORMAT = Format(
    "cifar",
    "cifar-10-python.tar.gz or cifar-100-python.tar.gz, or what they unpack to",
    recognises,
    open_cifar,
    options=("split",),
)
