"""A zip or a folder of images, as StyleGAN2-ADA lays it out, and what the trainer asks of a data set."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from torch_utils.command_line import UserError
from torch_utils.images import read_file
from training import cache
from training.archive import Member, list_zip, read_member
from training.bad_images import BadImages
from training.class_prior import ClassDraws
from training.condition import Condition, Exemplars, Sample, thumbnails
from training.decoding import Undecodable, decode
from training.image_source import class_numbers, shown
from training.randomness import integers, permutation

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
READERS = 8  # threads that read a folder for its checksums: more wait for a disk than compute


class Draws(NamedTuple):
    """Which samples to draw: an index into the data set and a seed for whatever is random about each of them."""

    index: np.ndarray  # int64 [N]
    seed: np.ndarray  # uint64 [N], a function of (run seed, position in the run)


class SampleSource(Protocol):
    """What the trainer asks of a data set, with or without labels and instances; to be inherited from.

    Real pairs and the conditions of fakes are drawn here and nowhere else, so that `c` and `h` of a row are always
    drawn together.
    """

    name: str
    resolution: int
    num_channels: int
    c_dim: int
    h_dim: int

    def __len__(self) -> int: ...
    def __getitem__(self, draws: Draws) -> Sample:
        """The real samples of `draws`, as one batch; the images may be on the training device already."""
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

    def refresh(self, step: int, networks: Mapping[str, torch.nn.Module]) -> None:
        """Called before step number `step`, in every process: for conditions that follow the training."""

    def condition(self, sample: Sample) -> Condition:
        """What the real images of a batch are conditioned on; asked in the process that trains, after `refresh`."""
        return Condition(sample.c, sample.h)

    def bad_images(self) -> dict[str, int]:
        """Images that turned out to be unreadable in the midst of the run, others stand in for them: name -> CRC-32.

        Every process calls this, at the same step.
        """
        return {}

    def stateful(self) -> dict[str, Any]:
        """Whatever has a memory, by name, with `state_dict` and `load_state_dict`."""
        return {}


class ImageFolderDataset:
    """Images by name: a zip of stored or deflated PNG (or a folder), and `dataset.json` with the labels.

    `dataset[i]` is (uint8 [C, H, W], float32 [c_dim]); images are in the order of their sorted names. Files in a zip
    are read with `os.pread` from a table of offsets made once, so one open file serves any number of forked workers.

    Args:
        path: the zip or folder.
        use_labels: one-hot labels from `dataset.json`; False gives c_dim 0.
        max_images: use a random subset of this many images (None: all).
        subset_seed: which subset.
        lost: name -> CRC-32 of images that belong to the data set although they may not be there any more, or damaged.

    Raises:
        UserError: missing, empty, not a zip, images that differ in shape, a resolution that is not a power of two,
            labels asked for and not there.
    """

    def __init__(
        self,
        path: str | Path,
        use_labels: bool = False,
        max_images: int | None = None,
        subset_seed: int = 0,
        lost: Mapping[str, int] | None = None,
    ) -> None:
        self.path, self._lost = Path(path), dict(lost or {})
        self._members = dict.fromkeys(self._lost) | _list_members(self.path)
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

        self._decoded: cache.Decoded | None = None
        self._bad: BadImages | None = None
        self.num_channels = self.resolution = 0
        first = self.image(next((i for i, name in enumerate(self.names) if name not in self._lost), 0))
        self.num_channels, self.resolution = int(first.shape[0]), int(first.shape[1])
        if first.shape[1] != first.shape[2] or self.resolution & (self.resolution - 1) or self.resolution < 8:
            raise UserError(
                f"--data={self.path}: {shown(self.names[0])} is {first.shape[2]}x{first.shape[1]} pixels; expected a "
                "square whose side is a power of two >= 8. Convert with: python dataset_tool.py convert "
                f"--source={self.path} --dest=NAME.zip --resolution={max(8, 2 ** round(np.log2(max(first.shape[1:]))))}"
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
        return self.path.name if self.path.is_dir() else self.path.stem

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
        return np.ascontiguousarray(self._pixels(i))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.num_channels, self.resolution, self.resolution

    def images(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """uint8 [N, C, H, W]; from the decoded images when they are kept. On the CPU, wherever those are."""
        return self.training_images(indices).cpu()

    def training_images(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """`images`, left on the training device when the decoded images are kept there."""
        if self._decoded is not None:
            return self._decoded.take(indices)
        return torch.from_numpy(self.decode_images(indices))

    def decode_images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [N, C, H, W], read from their files."""
        images = np.empty((len(indices), *self.image_shape), dtype=np.uint8)
        for image, i in zip(images, indices, strict=True):
            try:
                image[...] = self._pixels(int(i))
            except UserError as error:
                if self._bad is None:
                    raise
                self._bad.note(int(i), error)
                image[...] = self._pixels_after(int(i), self._bad)
        return images

    def tolerate(self, limit: int) -> None:
        """From now on let the next good image stand in for one that can't be read, of up to `limit` images."""
        _ = self.checksums  # what they are, while they are there
        before = [i for i, name in enumerate(self.names) if name in self._lost] if self._lost else []
        self._bad = BadImages(len(self), limit, before)

    def bad_images(self) -> dict[str, int]:
        """Images that could not be read since `tolerate`, and those lost before: name -> CRC-32 of what was there.

        Of several processes all call this, and are told of all.

        Raises:
            UserError: together they are more than is tolerated.
        """
        if self._bad is None:
            return {}
        self._bad.merge()
        return {self.names[i]: self.checksum(i) for i in self._bad.list()}

    def _pixels_after(self, i: int, bad: BadImages) -> np.ndarray:
        for j in (*range(i + 1, len(self)), *range(i)):
            if j in bad:
                continue
            try:
                return self._pixels(j)
            except UserError as error:
                bad.note(j, error)
        raise UserError(f"--data={self.path}: not one image is left that can be read")

    def _pixels(self, i: int) -> np.ndarray:
        name, remedy = self.names[i], "convert the data with dataset_tool.py convert"
        where = f"--data={self.path}: {shown(name)}"
        try:
            pixels = decode(self._read(name))
        except Undecodable as error:
            raise UserError(f"{where} {error}; {remedy}") from None
        except (OSError, ValueError) as error:  # ImageRefused among them
            raise UserError(f"{where} can't be read ({error}); {remedy}") from None
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if self.resolution and pixels.shape != self.image_shape:
            raise UserError(
                f"{where} is {list(pixels.shape)}, {shown(self.names[0])} is {list(self.image_shape)} (channels, "
                "height, width); expected one shape. Convert with: python dataset_tool.py convert "
                f"--source={self.path} --dest=NAME.zip --resolution={self.resolution}"
            )
        return pixels

    # -- decoded images -------------------------------------------------------------------------------------------

    @property
    def decoded_bytes(self) -> int:
        """What all images take decoded."""
        return len(self) * int(np.prod(self.image_shape))

    @property
    def in_memory(self) -> bool:
        """Whether images come from memory, of the machine or of the training device: no other process is any help."""
        return self._decoded is not None and self._decoded.file is None

    def decode_into_memory(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Decode every image once and answer from memory from then on."""
        self._decoded = cache.in_memory(self, say)

    def decode_onto(self, device: torch.device, say: Callable[[str], None] = lambda line: None) -> None:
        """The same, from the memory of the device that trains; worker processes can't be used then."""
        self._decoded = cache.on_device(self, device, say)

    def decode_to_disk(self, say: Callable[[str], None] = lambda line: None) -> None:
        """The same, from a file of decoded images; made once, and again when the data has changed."""
        self._decoded = cache.on_disk(self, say)

    def use_decoded_file(self) -> bool:
        """Answer from the file of decoded images if an earlier run has made it; whether it has."""
        self._decoded = cache.find_on_disk(self)
        return self._decoded is not None

    @property
    def subset_tag(self) -> str:
        """Part of the names of files made of a subset; '' for all images."""
        return f".subset{len(self)}-{self.subset_seed}" if self.is_subset else ""

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
        except (ValueError, RecursionError) as error:  # brackets may be nested without end
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

    @cached_property
    def checksums(self) -> np.ndarray:
        """uint32 [N] CRC-32 of the bytes of every image file: free in a zip (its directory has them), read in a folder.

        Raises:
            UserError: a file of a folder that can't be read.
        """
        members = [self._members[name] for name in self.names]
        if self.path.is_dir():
            with ThreadPoolExecutor(READERS) as readers:
                found = list(readers.map(self._checksum_of_file, self.names))
        else:
            found = [self._lost[name] if m is None else m.crc for name, m in zip(self.names, members, strict=True)]
        return np.array(found, dtype=np.uint32)

    def checksum(self, i: int) -> int:
        """CRC-32 of the bytes of image file `i`."""
        return int(self.checksums[i])

    def fingerprint(self) -> str:
        """SHA-256 over names and checksums of all images: equal for equal content, however it is packed."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        lines = (f"{crc:08x} {name}\n" for crc, name in zip(self.checksums.tolist(), self.names, strict=True))
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def _checksum_of_file(self, name: str) -> int:
        if name in self._lost:
            return self._lost[name]
        try:
            return zlib.crc32(read_file(self.path / name))
        except ValueError as error:
            raise UserError(f"--data={self.path}: {shown(name)} {error}; mend it, or convert the data again") from None

    def _read(self, name: str) -> bytes:
        member = self._members[name]
        if member is None:
            return read_file(self.path / name)
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        return read_member(self._descriptor, member)

    def __getstate__(self) -> dict[str, Any]:
        decoded = None if self.in_memory else self._decoded  # never copied into a worker; a file is mapped there
        return self.__dict__ | {"_descriptor": None, "_decoded": decoded}  # a worker opens the zip itself

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]
            self._descriptor = None


class LabelledSource(SampleSource):
    """An `ImageFolderDataset` as the trainer wants it: unconditional, or conditioned on the image's own class.

    Args:
        dataset: the images.
        sampling: 'instance' shows every image equally often; 'class' draws a class, then an image of it.
        class_temperature: of the class prior for 'class'; None: all classes alike.
    """

    h_dim = 0

    def __init__(
        self, dataset: ImageFolderDataset, sampling: str = "instance", class_temperature: float | None = None
    ) -> None:
        self.dataset = dataset
        self._by_class = ClassDraws(_ids(dataset), class_temperature) if sampling == "class" else None
        self.name, self.c_dim = dataset.name, dataset.c_dim
        self.resolution, self.num_channels = dataset.resolution, dataset.num_channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draws: Draws) -> Sample:
        j = self._draw(draws)
        h = torch.zeros(len(j), 0)
        return Sample(self.dataset.training_images(j), self.dataset.labels(j), h, torch.from_numpy(j))

    def bad_images(self) -> dict[str, int]:
        return self.dataset.bad_images()

    def conditions(self, draws: Draws) -> Condition:
        j = self._draw(draws)
        return Condition(self.dataset.labels(j), torch.zeros(len(j), 0))

    def _draw(self, draws: Draws) -> np.ndarray:
        """The images, int64 [N]."""
        return draws.index if self._by_class is None else self._by_class.images(draws.seed)

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


def _ids(dataset: ImageFolderDataset) -> np.ndarray:
    """Class of every image; the check of the options has made sure that there are some."""
    if dataset.class_ids is None:
        raise ValueError(f"{dataset.path} has no classes to draw from")
    return dataset.class_ids


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
