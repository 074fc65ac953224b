"""Images of a folder or zip, decoded as they are asked for."""

import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from metrics.image_sets import ImageSet
from torch_utils.command_line import UserError
from torch_utils.images import ImageRefused, decode_image, make_square
from training.image_source import ImageFile, open_source, shown
from training.labelling import decide_labels
from training.workers import in_order

READERS = 8  # threads that read a folder: more wait for a disk than compute


def decoded(files: Sequence[ImageFile], resize: int | None, channels: int, where: str, ids: np.ndarray) -> torch.Tensor:
    """uint8 [N, C, H, W] of some files."""
    images = []
    for i in ids:
        try:
            image = decode_image(files[int(i)].read())
            image = make_square(image, resize) if resize else image
        except ImageRefused as error:
            raise UserError(f"{where}: {shown(files[int(i)].name)}: {error}; remove or replace it") from None
        pixels = np.atleast_3d(np.asarray(image.convert("L" if channels == 1 else "RGB")))
        images.append(pixels.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images))


class FileImages(ImageSet):
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
            "content": hashlib.sha256("".join(lines).encode()).hexdigest(),
            "resolution": [height, width],
            "channels": self.channels,
            "resize": f"center-crop, lanczos, {resize}" if resize else None,
        }
        super().__init__(description, len(self.files))
        self.resolution = height, width
        self._decode = partial(decoded, self.files, resize, self.channels, f"{flag}={path}")
        labels = decide_labels(source, "auto").by_name
        self._labels = None if labels is None else np.array([labels[file.name] for file in self.files])
        self._attributes = source.attributes

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

    def seen(self, ids: np.ndarray) -> np.ndarray | None:
        words = [self._attributes.get(self.files[int(i)].name, {}).get("combination") for i in ids]
        return None if None in words else np.array([word == "seen" for word in words])
