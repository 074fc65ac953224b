"""Pixels -> files, by a few threads, so that the generator need not wait for zlib."""

import io
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from training.image_grid import picture

JPEG_QUALITY = 95
THREADS = min(os.cpu_count() or 1, 16)
AHEAD = 128  # images that wait for a thread at most, a few batches: 25 MB of 256 px, 400 MB of 1024 px
PNG_SIGNATURE, PNG_LEVEL = b"\x89PNG\r\n\x1a\n", 3  # zlib's; 6 takes twice as long for 5 % less
AVERAGE = 3  # the filter of all rows; for photographs as good as choosing one for each

Item = TypeVar("Item")
Result = TypeVar("Result")


def encode(image: torch.Tensor, kind: str) -> bytes:
    """uint8 [C, H, W] as a 'png' or 'jpg' file; the same bytes for the same pixels."""
    if kind == "png":
        return _png(image)
    buffer = io.BytesIO()
    picture(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _png(image: torch.Tensor) -> bytes:
    """uint8 [C, H, W] as PNG (ISO/IEC 15948), grey or RGB; nearly all without Python's lock, which Pillow keeps."""
    channels, height, width = image.shape
    rows = np.zeros((height + 1, (width + 1) * channels), np.int16)  # a row above and a pixel to the left, both 0
    rows[1:, channels:] = image.permute(1, 2, 0).reshape(height, -1).numpy()
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = AVERAGE
    filtered[:, 1:] = rows[1:, channels:] - ((rows[:-1, channels:] + rows[1:, :-channels]) >> 1)  # modulo 256
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(filtered, PNG_LEVEL), b"IEND": b""}
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks.items()
    )


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of every item, in their order. Items are made in the caller's thread, while others are worked on."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
