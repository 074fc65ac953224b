"""Pixels -> files, by a few threads, so that the generator need not wait for zlib."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from torch_utils.images import encode_png
from training.image_grid import picture

JPEG_QUALITY = 95
THREADS = 4
AHEAD = 16  # images that wait for a thread at most: they are in memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def encode(image: torch.Tensor, kind: str) -> bytes:
    """uint8 [C, H, W] as a 'png' or 'jpg' file; the same bytes for the same pixels."""
    if kind == "png":
        return encode_png(picture(image))
    buffer = io.BytesIO()
    picture(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


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
