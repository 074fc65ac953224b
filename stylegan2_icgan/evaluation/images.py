"""Images of a folder or zip, decoded as they are asked for."""

import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from metrics.image_sets import ImageSet
from torch_utils.command_line import UserError
from torch_utils.images import ImageRefused, decode_image, make_square
from training.dataset import ImageFolderDataset
from training.decoding import Undecodable, decode
from training.image_source import Attributes, ImageFile, open_source, shown
from training.labelling import decide_labels
from training.workers import in_order

READERS = 8  # threads that read a folder: more wait for a disk than compute


def decoded(files: Sequence[ImageFile], resize: int | None, channels: int, where: str, ids: np.ndarray) -> torch.Tensor:
    """uint8 [N, C, H, W] of some files."""
    images = []
    for i in ids:
        try:
            pixels = np.atleast_3d(_pixels(files[int(i)].read(), resize, channels))
        except ImageRefused as error:
            raise UserError(f"{where}: {shown(files[int(i)].name)}: {error}; remove or replace it") from None
        images.append(np.broadcast_to(pixels, (*pixels.shape[:2], channels)).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images))


def _pixels(data: bytes, resize: int | None, channels: int) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]; as it is stored, by the fastest decoder, where that is opaque grey or RGB."""
    if resize is None and b"tRNS" not in data:  # one colour of a PNG may be transparent
        with suppress(Undecodable):
            return decode(data)
    image = decode_image(data)
    image = make_square(image, resize) if resize else image
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


class RealImages(ImageSet):
    """Images that a model can be conditioned on, too.

    Args:
        path: folder or zip.
        names: of all images, in order.
    """

    attributes: Mapping[str, Attributes]  # what is known of images beside their class, by name

    def __init__(self, description: dict[str, Any], path: Path, names: Sequence[str]) -> None:
        super().__init__(description, len(names))
        self.path, self.names = path, names

    def dataset(self, use_labels: bool) -> ImageFolderDataset:
        """The same images, to draw conditions from.

        Raises:
            UserError: they are not as a model wants them, or have no labels.
        """
        raise NotImplementedError

    def seen(self, ids: np.ndarray) -> np.ndarray | None:
        words = [self.attributes.get(self.names[int(i)], {}).get("combination") for i in ids]
        return None if None in words else np.array([word == "seen" for word in words])


class DatasetImages(RealImages):
    """The images that a model is, or was, trained on; from memory where the data set keeps them decoded."""

    def __init__(self, dataset: ImageFolderDataset, workers: int) -> None:
        description = {
            "path": str(dataset.path),
            "content": dataset.fingerprint(),
            "resolution": [dataset.resolution, dataset.resolution],
            "channels": dataset.num_channels,
            "resize": None,
        }
        if dataset.is_subset:
            description["subset_seed"] = dataset.subset_seed
        super().__init__(description, dataset.path, dataset.names)
        self._dataset, self.workers = dataset, workers

    def dataset(self, use_labels: bool) -> ImageFolderDataset:
        mine = self._dataset
        if mine.use_labels == use_labels:
            return mine
        return ImageFolderDataset(mine.path, use_labels, len(mine) if mine.is_subset else None, mine.subset_seed)

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        return in_order(self._dataset.images, ids, 0 if self._dataset.in_memory else self.workers)

    def classes(self, ids: np.ndarray) -> np.ndarray | None:
        found = self._dataset.class_ids
        return None if found is None else found[ids]

    @cached_property
    def attributes(self) -> Mapping[str, Attributes]:
        return open_source(self.path).attributes


class FileImages(RealImages):
    """The images of a folder or zip, of any kind and any one size.

    Args:
        resize: side to which they are brought, centre-cropped (Lanczos); None: all must have one size.
        flag: that named it, for errors.

    Raises:
        UserError: none there, one that can't be read, or sizes that differ.
    """

    def __init__(self, path: Path, resize: int | None, workers: int, flag: str) -> None:
        try:
            source = open_source(path)
        except UserError as error:
            raise UserError(str(error).replace("--source", flag, 1)) from None
        self.files, self.workers = source.files, workers
        with ThreadPoolExecutor(READERS) as readers:
            looks = list(readers.map(partial(self._look, f"{flag}={path}"), source.files))
        sizes = [size for _, size, _ in looks]
        odd = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
        if odd is not None and resize is None:
            names = [f"{shown(self.files[i].name)} is {'x'.join(map(str, sizes[i]))}" for i in (0, odd)]
            raise UserError(
                f"{flag}={path}: {', '.join(names)}; expected images of one size. Bring them to one: --resize=256"
            )
        self.channels = 1 if all(grey for _, _, grey in looks) else 3
        lines = (f"{crc:08x} {file.name}\n" for (crc, _, _), file in zip(looks, self.files, strict=True))
        width, height = (resize, resize) if resize else sizes[0]
        description = {
            "path": str(path),
            "content": hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest(),
            "resolution": [height, width],
            "channels": self.channels,
            "resize": f"center-crop, lanczos, {resize}" if resize else None,
        }
        super().__init__(description, path, [file.name for file in self.files])
        self._decode = partial(decoded, self.files, resize, self.channels, f"{flag}={path}")
        labels = decide_labels(source, "auto").by_name
        self._labels = None if labels is None else np.array([labels[file.name] for file in self.files])
        self.attributes = source.attributes

    @staticmethod
    def _look(where: str, file: ImageFile) -> tuple[int, tuple[int, int], bool]:
        """CRC-32 of the file, width and height, whether it is grey: without decoding it."""
        try:
            data = file.read()
            with PIL.Image.open(io.BytesIO(data)) as image:
                return zlib.crc32(data), image.size, image.mode in ("L", "1", "I;16")
        except (OSError, ValueError) as error:  # ImageRefused among them
            raise UserError(f"{where}: {shown(file.name)} can't be read ({error}); remove or replace it") from None

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        return in_order(self._decode, ids, self.workers)

    def classes(self, ids: np.ndarray) -> np.ndarray | None:
        return None if self._labels is None else self._labels[ids]

    def dataset(self, use_labels: bool) -> ImageFolderDataset:
        return ImageFolderDataset(self.path, use_labels)
