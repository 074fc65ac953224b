"""MNIST and sets in its form (Fashion-MNIST, Kuzushiji-MNIST): idx files, plain or gzipped.

Source: LeCun, Cortes, Burges, The MNIST Database; the idx format is described there. Fashion-MNIST: arXiv 1708.07747.
"""

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from torch_utils.command_line import UserError
from training.formats.format import Format, SourceOptions, choose_split
from training.image_source import ArrayImage, Source
from training.labelling import labels_of_words

PREFIXES = {"train": "train", "test": "t10k"}
KINDS = {"images": 3, "labels": 1}  # dimensions
UINT8 = 8  # code of the type in an idx file
CHUNK_BYTES = 1 << 20  # of a packed file, read at a time
MAX_BYTES = 1 << 30  # of values; EMNIST's largest part has 550 MB
# fmt: off
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
# fmt: on


def recognises(path: Path) -> bool:
    if path.is_file():
        return any(path.name in _names(split, kind) for split in PREFIXES for kind in KINDS)
    return any(_find(folder, split, "images") for folder in _folders(path) for split in PREFIXES)


def open_mnist(path: Path, options: SourceOptions) -> Source:
    folder, wanted = path, options.split
    if path.is_file():
        folder = path.parent
        of_file = next((split for split, prefix in PREFIXES.items() if path.name.startswith(prefix)), "train")
        if wanted not in (None, of_file):
            raise UserError(f"--split={wanted}: {path.name} is the split {of_file}; give the folder as --source")
        wanted = of_file
    folder = next(one for one in _folders(folder) if any(_find(one, split, "images") for split in PREFIXES))
    split = choose_split(path, wanted, [name for name in PREFIXES if _find(folder, name, "images")])
    images, labels = _find(folder, split, "images"), _find(folder, split, "labels")
    if images is None or labels is None:
        raise UserError(f"--source={path} has no {_names(split, 'labels')[0]}[.gz] beside the images; expected both")

    (count, height, width), pixels = _read(images, KINDS["images"])
    (num_labels,), numbers = _read(labels, KINDS["labels"])
    if num_labels != count or len(numbers) != count:
        raise UserError(f"{labels} has {len(numbers):,} labels, {images.name} says {count:,} images; get them again")
    source = Source(path, split=split, containers=[images, labels])
    size = height * width
    words: dict[str, str] = {}
    found = []
    is_fashion = "fashion" in str(path.resolve()).lower() and max(numbers, default=0) < len(FASHION)
    class_names = FASHION if is_fashion else [str(i) for i in range(max(numbers, default=0) + 1)]
    for i in range(count):
        name = f"{split}/{i:05d}"
        if (i + 1) * size > len(pixels):
            source.refused[name] = f"{images.name} ends before it; get the file again"
            continue
        found.append(ArrayImage(name, pixels[i * size : (i + 1) * size], (height, width)))
        words[name] = class_names[numbers[i]]
    if not found:
        raise UserError(f"{images} holds no whole image; get it again")
    source.files = found
    source.labels = labels_of_words(words, f"{{}} classes from {labels.name}", class_names)
    return source


def _read(path: Path, num_dimensions: int) -> tuple[tuple[int, ...], bytes]:
    """Sizes and values of an idx file of uint8; fewer values than the sizes say when the file is cut short."""
    header = struct.Struct(f">HBB{num_dimensions}I")
    try:
        with path.open("rb") as file:
            read = _unzip(file) if path.suffix == ".gz" else file.read
            zeros, kind, dimensions, *sizes = header.unpack(read(header.size))
            if (zeros, kind, dimensions) != (0, UINT8, num_dimensions):
                raise UserError(f"{path} is no idx file of {num_dimensions} dimensions of bytes; get it again")
            num_bytes = math.prod(sizes)
            if num_bytes > MAX_BYTES:
                raise UserError(f"{path} says that it has {num_bytes:,} values, at most {MAX_BYTES:,} are read")
            return tuple(sizes), read(num_bytes)
    except (OSError, zlib.error, struct.error) as error:
        raise UserError(f"{path} can't be read as an idx file ({error}); get it again") from None


def _unzip(file: IO[bytes]) -> Callable[[int], bytes]:
    """Reads that many unpacked bytes, fewer at the end: a small file that unpacks to the whole memory does no harm."""
    unzip, packed = zlib.decompressobj(zlib.MAX_WBITS | 16), b""

    def read(num_bytes: int) -> bytes:
        nonlocal packed
        data = bytearray()
        while len(data) < num_bytes and not unzip.eof:
            packed = packed or file.read(CHUNK_BYTES)
            if not packed:
                break
            data += unzip.decompress(packed, num_bytes - len(data))
            packed = unzip.unconsumed_tail
        return bytes(data)

    return read


def _folders(path: Path) -> list[Path]:
    """Where the files may lie: here, or where torchvision puts them."""
    return [path, path / "raw", path / "MNIST" / "raw", path / "FashionMNIST" / "raw"]


def _find(folder: Path, split: str, kind: str) -> Path | None:
    return next((folder / name for name in _names(split, kind) if (folder / name).is_file()), None)


def _names(split: str, kind: str) -> list[str]:
    """'train-images-idx3-ubyte' as published, 'train-images.idx3-ubyte' as some tools unpack it."""
    stems = [f"{PREFIXES[split]}-{kind}{dot}idx{KINDS[kind]}-ubyte" for dot in "-."]
    return [stem + ending for stem in stems for ending in ("", ".gz")]


FORMAT = Format(
    "mnist",
    "train-images-idx3-ubyte[.gz] and its labels; t10k-... for the test split",
    recognises,
    open_mnist,
    options=("split",),
)
