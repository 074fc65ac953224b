"""A zip or a folder of images, as StyleGAN2-ADA lays it out, and what the trainer asks of a data set."""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL.Image
import torch

from torch_utils.command_line import UserError
from torch_utils.images import read_file
from training.archive import Member, list_zip, read_member
from training.condition import Condition, Exemplars, Sample, thumbnails
from training.image_source import class_numbers
from training.randomness import integers, permutation

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
EXIF_ORIENTATION = 0x0112


class Draws(NamedTuple):
    """Which samples to draw: an index into the data set and a seed for whatever is random about each of them."""

    index: np.ndarray  # int64 [N]
    seed: np.ndarray  # uint64 [N], a function of (run seed, position in the run)


class SampleSource(Protocol):
    """What the trainer asks of a data set, with or without labels and instances.

    Real pairs and the conditions of fakes are drawn here and nowhere else, so that `c` and `h` of a row are always
    drawn together.
    """

    @property
    def name(self) -> str: ...
    @property
    def resolution(self) -> int: ...
    @property
    def num_channels(self) -> int: ...
    @property
    def c_dim(self) -> int: ...
    @property
    def h_dim(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, draws: Draws) -> Sample:
        """The real samples of `draws`, as one batch."""
        ...

    def conditions(self, draws: Draws) -> Condition:
        """The conditions of fakes for `draws`: the same distribution as the real ones, no image read."""
        ...

    def showcase(self, rows: int, columns: int) -> tuple[Condition, torch.Tensor]:
        """For a sheet: `rows` conditions, and uint8 [rows, columns, C, H, W] real images that explain each."""
        ...

    def exemplars(self, count: int) -> Exemplars:
        """At most `count` conditions that stand for the data set in a snapshot."""
        ...


class ImageFolderDataset:
    """Images by name: a zip of stored or deflated PNG (or a folder), and `dataset.json` with the labels.

    `dataset[i]` is (uint8 [C, H, W], float32 [c_dim]); images are in the order of their sorted names. Files in a zip
    are read with `os.pread` from a table of offsets made once, so one open file serves any number of forked workers.

    Args:
        path: the zip or folder.
        use_labels: one-hot labels from `dataset.json`; False gives c_dim 0.
        max_images: use a random subset of this many images (None: all).
        subset_seed: which subset.

    Raises:
        UserError: missing, empty, not a zip, images that differ in shape, a resolution that is not a power of two,
            labels asked for and not there.
    """

    def __init__(
        self, path: str | Path, use_labels: bool = False, max_images: int | None = None, subset_seed: int = 0
    ) -> None:
        self.path = Path(path)
        self._members = _list_members(self.path)
        self._descriptor: int | None = None  # opened on first read, in the process that reads
        all_names = sorted(name for name in self._members if Path(name).suffix.lower() in IMAGE_ENDINGS)
        if not all_names:
            raise UserError(
                f"--data={self.path} holds no images; make a data set with: python dataset_tool.py convert --source=..."
            )
        if max_images is not None and max_images < 1:
            raise UserError(f"--subset={max_images}: expected at least 1 image")
        self.subset_seed, self.is_subset = subset_seed, max_images is not None and max_images < len(all_names)
        kept = np.sort(permutation(len(all_names), subset_seed)[:max_images])
        self.names = [all_names[i] for i in kept]

        self._cache: torch.Tensor | None = None
        first = self.image(0)
        self.num_channels, self.resolution = int(first.shape[0]), int(first.shape[1])
        if first.shape[1] != first.shape[2] or self.resolution & (self.resolution - 1) or self.resolution < 8:
            raise UserError(
                f"--data={self.path}: {self.names[0]} is {first.shape[2]}x{first.shape[1]} pixels; expected a square "
                "whose side is a power of two >= 8. Convert with: python dataset_tool.py convert --resolution="
                f"{max(8, 2 ** round(np.log2(max(first.shape[1:]))))}"
            )
        self.use_labels = use_labels
        if use_labels and self.c_dim == 0:
            raise UserError(
                f"--cond asks for class labels, but {self.path} has none in its dataset.json; expected "
                '{"labels": [["name.png", 0], ...]}. Use --cond=none or --cond=instance, or convert a folder whose '
                "sub-folders are the classes."
            )

    @property
    def name(self) -> str:
        return self.path.stem

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.image(i), self.label(i)

    # -- images ---------------------------------------------------------------------------------------------------

    def image(self, i: int) -> np.ndarray:
        """Image `i`, uint8 [C, H, W].

        Raises:
            UserError: the file can't be decoded, or has another shape than the first; the file is named.
        """
        name = self.names[i]
        where, remedy = f"--data={self.path}: {name}", "convert the data with dataset_tool.py convert"
        try:
            decoded = PIL.Image.open(io.BytesIO(self._read(name)))
            pixels = np.array(decoded)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files, and ImageRefused
            reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else error
            raise UserError(f"{where} can't be read ({reason}); {remedy}") from None
        if decoded.mode not in ("L", "RGB") or pixels.dtype != np.uint8:
            raise UserError(f"{where} has pixels of kind {decoded.mode}; expected 8-bit grey or RGB: {remedy}")
        if decoded.getexif().get(EXIF_ORIENTATION, 1) != 1:
            raise UserError(f"{where} is stored rotated (EXIF); expected it upright: {remedy}")
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if i and pixels.shape != self.image_shape:
            raise UserError(
                f"--data={self.path}: {name} is {list(pixels.shape)}, {self.names[0]} is {list(self.image_shape)} "
                "(channels, height, width); expected one shape. Convert with: python dataset_tool.py convert "
                "--resolution=..."
            )
        return np.ascontiguousarray(pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.num_channels, self.resolution, self.resolution

    def images(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """uint8 [N, C, H, W]; from the decoded cache when there is one."""
        if self._cache is not None:
            return self._cache[torch.as_tensor(np.asarray(indices))]
        return torch.from_numpy(np.stack([self.image(int(i)) for i in indices]))

    @property
    def decoded_bytes(self) -> int:
        """What all images take decoded."""
        return len(self) * int(np.prod(self.image_shape))

    @property
    def in_memory(self) -> bool:
        return self._cache is not None

    def decode_into_memory(self) -> None:
        """Decode every image once and answer from memory from then on."""
        cache = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        for i in range(len(self)):
            cache[i] = torch.from_numpy(self.image(i))
        self._cache = cache

    # -- labels ---------------------------------------------------------------------------------------------------

    @cached_property
    def _described(self) -> tuple[np.ndarray | None, int, dict[str, Any]]:
        """Class ids, number of classes, and how the images were converted: what `dataset.json` says, read once.

        The rest of it (a name and a label for every image) is not kept.
        """
        if "dataset.json" not in self._members:
            return None, 0, {}
        where, remedy = f"--data={self.path}: its dataset.json", "mend it, or convert the data again"
        try:
            content = json.loads(self._read("dataset.json"))
        except ValueError as error:
            raise UserError(f"{where} can't be read ({error}); {remedy}") from None
        if not isinstance(content, dict):
            raise UserError(f'{where} is a {type(content).__name__}; expected {{"labels": [...]}}; {remedy}')
        how = {key: content[key] for key in ("transform", "filter", "pad_color", "background") if content.get(key)}
        if not content.get("labels"):
            return None, 0, how
        by_name, num_classes = class_numbers(content, self.names, where, remedy)
        return np.array([by_name[name] for name in self.names], dtype=np.int64), num_classes, how

    @property
    def class_ids(self) -> np.ndarray | None:
        """int64 [N] class of every image, or None when the data set has no labels."""
        return self._described[0]

    @property
    def num_classes(self) -> int:
        """Number of classes in `dataset.json`, whatever subset is used; 0 without labels."""
        return self._described[1]

    @property
    def conversion(self) -> dict[str, Any]:
        """How dataset_tool.py made the images square: transform, filter, colours; {} when it does not say."""
        return self._described[2]

    @property
    def c_dim(self) -> int:
        return self.num_classes if self.use_labels else 0

    @property
    def h_dim(self) -> int:
        return 0

    def label(self, i: int) -> np.ndarray:
        """One-hot label of image `i`, float32 [c_dim]."""
        return self.labels([i])[0].numpy()

    def labels(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """One-hot labels, float32 [N, c_dim]."""
        onehot = torch.zeros(len(indices), self.c_dim)
        if self.c_dim:
            assert self.class_ids is not None
            onehot[torch.arange(len(indices)), torch.from_numpy(self.class_ids[np.asarray(indices)])] = 1
        return onehot

    # -- files ----------------------------------------------------------------------------------------------------

    def checksum(self, i: int) -> int:
        """CRC-32 of the bytes of image file `i`: free in a zip (it is in the directory), read once in a folder."""
        member = self._members[self.names[i]]
        return zlib.crc32(self._read(self.names[i])) if member is None else member.crc

    def fingerprint(self) -> str:
        """SHA-256 over names and checksums of all images: equal for equal content, however it is packed."""
        lines = (f"{self.checksum(i):08x} {name}\n" for i, name in enumerate(self.names))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _read(self, name: str) -> bytes:
        member = self._members[name]
        if member is None:
            return read_file(self.path / name)
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        return read_member(self._descriptor, member)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}  # a worker opens the file itself

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]
            self._descriptor = None


class LabelledSource:
    """An `ImageFolderDataset` as the trainer wants it: unconditional, or conditioned on the image's own class."""

    h_dim = 0

    def __init__(self, dataset: ImageFolderDataset) -> None:
        self.dataset = dataset
        self.name, self.c_dim = dataset.name, dataset.c_dim
        self.resolution, self.num_channels = dataset.resolution, dataset.num_channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draws: Draws) -> Sample:
        index = torch.from_numpy(draws.index)
        c = self.dataset.labels(draws.index)
        return Sample(self.dataset.images(draws.index), c, torch.zeros(len(index), 0), index)

    def conditions(self, draws: Draws) -> Condition:
        return Condition(self.dataset.labels(draws.index), torch.zeros(len(draws.index), 0))

    def showcase(self, rows: int, columns: int) -> tuple[Condition, torch.Tensor]:
        """A row per class with images of it; without labels, rows with no explaining image (columns = 0)."""
        if not self.c_dim:
            return Condition.empty(rows), torch.zeros(rows, 0, *self.dataset.image_shape, dtype=torch.uint8)
        assert self.dataset.class_ids is not None
        present = np.unique(self.dataset.class_ids)
        classes = present[np.arange(rows) % len(present)]
        members = [np.flatnonzero(self.dataset.class_ids == k) for k in classes]
        shown = np.stack([ids[integers(len(ids), row, np.arange(columns))] for row, ids in enumerate(members)])
        images = self.dataset.images(shown.reshape(-1)).unflatten(0, shown.shape)
        return Condition(torch.eye(self.c_dim)[classes], torch.zeros(rows, 0)), images

    def exemplars(self, count: int) -> Exemplars:
        """One per class that has images; none without labels."""
        num_present = len(np.unique(self.dataset.class_ids)) if self.c_dim else 0  # type: ignore[arg-type]
        condition, images = self.showcase(min(count, num_present), 1)
        names = [f"class {row}" for row in condition.c.argmax(dim=1).tolist()] if self.c_dim else []
        return Exemplars(condition, thumbnails(images.flatten(0, 1)), names)


def _list_members(path: Path) -> dict[str, Member | None]:
    """Names of all files in a zip, with the place of each, or in a folder (None)."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): None for file in path.rglob("*") if file.is_file()}
    if not path.exists():
        raise UserError(f"--data={path} does not exist; expected a zip or folder of images")
    try:
        return dict(list_zip(path))
    except ValueError as error:
        raise UserError(f"--data={path} can't be read as a zip ({error}); expected a zip or folder of images") from None
