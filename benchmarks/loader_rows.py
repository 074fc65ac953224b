"""Images a second from the decoded cache and from a zip: the loader's part of benchmarks/instances.py."""

import io
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image

from stylegan2_icgan.instances import InstanceDataset
from training.dataset import ImageFolderDataset
from training.loading import make_loader

BATCH, H_DIM, K = 64, 384, 50
LARGE_SHARE = 20  # one image of 256 px for so many of 64 px


def loader_rows(folder: Path, num_images: int, repeats: int) -> dict[str, Any]:
    """Images a second of CPU: with instance draws from the cache at 64 px, and decoded at 256 px.

    Args:
        folder: for two zips.
        num_images: of 64 px; a twentieth of 256 px.
    """
    small = ImageFolderDataset(write_photos(folder / "small.zip", num_images, 64))
    small.decode_into_memory()
    loader = make_loader(_instances(small), seed=0, start=0, batch=BATCH, workers=0)
    num_batches = max(2, 5 * num_images // BATCH)
    next(loader)

    def cached() -> int:
        return sum(len(next(loader).image) for _ in range(num_batches))

    large = ImageFolderDataset(write_photos(folder / "large.zip", max(2, num_images // LARGE_SHARE), 256))

    def decoded() -> int:
        return len(large.images(range(len(large))))

    return {
        "cached_64px_images_per_sec": _rate(cached, repeats),
        "decoded_256px_images_per_sec": _rate(decoded, repeats),
    }


def write_photos(path: Path, count: int, side: int) -> Path:
    """A zip of RGB PNG that compress as photographs do: smooth shapes, and grain of about two bits."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            coarse = PIL.Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((side, side), PIL.Image.Resampling.BICUBIC), dtype=np.int16)
            image = np.clip(smooth + rng.integers(-2, 3, smooth.shape), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            PIL.Image.fromarray(image).save(buffer, format="png")
            archive.writestr(f"{i:06d}.png", buffer.getvalue())
    return path


def _instances(dataset: ImageFolderDataset) -> InstanceDataset:
    """Instances as they are drawn in training, with random features and neighbours."""
    rng = np.random.default_rng(0)
    num, k = len(dataset), min(K, len(dataset) - 1)
    features = rng.standard_normal((num, H_DIM), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    neighbours = (np.arange(num)[:, None] + 1 + rng.integers(0, num - 1, (num, k))) % num
    store: Any = SimpleNamespace(k=k, h_dim=H_DIM, features=features, features_mirror=features, neighbours=neighbours)
    return InstanceDataset(dataset, store, k)


def _rate(work: Callable[[], int], repeats: int) -> float:
    """Median of images a second of CPU."""
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        count = work()
        rates.append(count / (time.process_time() - start))
    return statistics.median(rates)
