"""What metrics cost: statistics, trace term, neighbours, memory, decoding.

    python -m benchmarks.metrics --out=benchmarks/results/metrics.json
    python -m benchmarks.metrics --neighbours=10000 --neighbours=50000      # six minutes more, nothing extrapolated

Times are CPU seconds of this process with one thread, best of `--repeats`, and ratios are of one run. Memory is the
growth of the largest resident size of the process. Precision and recall are measured at several sizes; what
50,000 x 50,000 would take follows from the number of pairs, what memory it would take has to be measured.
"""

import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import torch

from metrics.detectors import RandomProjection
from metrics.feature_stats import BLOCK_ROWS, FeatureStats, GroupedStats
from metrics.frechet import frechet_distance, frechet_error, sqrt_trace
from metrics.image_sets import ImageSet, extract
from metrics.kernel_distance import kernel_distance
from metrics.precision_recall import precision_recall
from stylegan2_icgan.evaluation.images import FileImages
from torch_utils.command_line import Command
from torch_utils.files import atomic_write
from torch_utils.misc import keep_large_buffers

LARGE = 50_000  # x as many: the precision and recall of pr50k3_full


class Noise(ImageSet):
    """Images of random pixels, made as they are asked for."""

    def __init__(self, side: int) -> None:
        super().__init__({}, None)
        self.side = side

    def batches(self, ids: list[np.ndarray]) -> Iterator[torch.Tensor]:  # type: ignore[override]
        generator = torch.Generator().manual_seed(0)
        for some in ids:
            yield torch.randint(0, 256, (len(some), 3, self.side, self.side), generator=generator, dtype=torch.uint8)


def features(num: int, width: int, seed: int) -> torch.Tensor:
    """float32 [num, width] with a decaying spectrum, as real features have."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, width, generator=draw)
    return rows.div_(torch.arange(1, width + 1).sqrt()).add_(0.4)  # in place: the memory measured is the metric's


def cpu_sec(run: Callable[[], object], repeats: int) -> float:
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


def products(x: torch.Tensor) -> torch.Tensor:
    """The matrix products that a covariance needs, and nothing else: float64, by blocks."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for block in x.split(BLOCK_ROWS):
        rows = block.double()
        total.addmm_(rows.T, rows)
    return total


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent had when it started this process, too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def statistics(num: int, width: int, repeats: int) -> dict[str, float]:
    """Mean and covariance of features that arrive 64 at a time, against the products alone."""
    x = features(num, width, 0)

    def stream(stats: FeatureStats | GroupedStats) -> None:
        for batch in x.split(64):
            stats.append(batch)

    product, ours = cpu_sec(lambda: products(x), repeats), cpu_sec(lambda: stream(FeatureStats()), repeats)
    grouped = cpu_sec(lambda: stream(GroupedStats(num)), repeats)
    a, groups = FeatureStats().append(features(num, width, 1) * 1.1), GroupedStats(num).append(x).groups()
    b = reduce(add, groups)
    cov_a, cov_b = a.cov, b.cov
    return {
        "product_sec": product,
        "statistics_sec": ours,
        "ratio": ours / product,
        "in_groups_ratio": grouped / product,
        "trace_sec": cpu_sec(lambda: sqrt_trace(cov_a, cov_b), repeats),
        "frechet_sec": cpu_sec(lambda: frechet_distance(a, b), repeats),
        "error_sec": cpu_sec(lambda: frechet_error(a, groups), 1),
    }


def float32_products(num: int, width: int) -> dict[str, float]:
    """What float32 products with float64 sums would save, and cost in exactness."""
    x = features(num, width, 0)
    exact = FeatureStats().append(x).cov
    mean = x.double().mean(dim=0)

    def single() -> torch.Tensor:
        total = torch.zeros(width, width, dtype=torch.float64)
        for block in x.split(BLOCK_ROWS):
            rows = (block.double() - mean).float()
            total += rows.T @ rows
        return total / (len(x) - 1)

    seconds, cov = cpu_sec(single, 1), single()
    return {"sec": seconds, "relative_error": float((cov - exact).abs().max() / exact.abs().max())}


def neighbours(num: int, width: int) -> dict[str, float]:
    """Precision and recall of num x num; memory is that of both sets of features and of what is computed."""
    before = peak_mib()
    real, fake = features(num, width, 0), features(num, width, 1)
    seconds = cpu_sec(lambda: precision_recall(real, fake), 1)
    return {
        "num": num,
        "width": width,
        "sec": seconds,
        "features_mib": (real.nbytes + fake.nbytes) / 2**20,
        "memory_mib": peak_mib() - before,
        "process_mib": peak_mib(),
    }


def decoding(side: int, num: int) -> dict[str, float]:
    """Images a second of CPU that one process decodes, of files such as cameras leave: smooth, with some noise."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num):
            smooth = PIL.Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((side, side))
            pixels = np.asarray(smooth) + draw.normal(0, 4, (side, side, 3))
            PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(Path(folder) / f"{number}.png")
        images = FileImages(Path(folder), None, 0, "--data")
        seconds = cpu_sec(lambda: list(images.batches(np.split(np.arange(num), range(64, num, 64)))), 3)
        mib = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
    return {"side": side, "images": num, "kib_each": mib * 1024 / num, "images_per_cpu_sec": num / seconds}


def memory(num: int) -> dict[str, float]:
    """Growth of the process while the statistics of `num` images stream through, after the first tenth."""
    detector, stats, start = RandomProjection(), FeatureStats(), 0.0
    for done, rows in enumerate(extract(Noise(64), detector, np.arange(num))):
        stats.append(rows)
        if done == num // detector.batch // 10:
            start = peak_mib()
    return {"images": num, "growth_mib": peak_mib() - start}


def alone(part: str, *numbers: int) -> dict[str, float]:
    """A part in a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "benchmarks.metrics", f"--part={part}", *(f"--numbers={n}" for n in numbers)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return dict(json.loads(answer.stdout))


@click.command(cls=Command, help=__doc__)
@click.option("--num", type=int, default=50_000, show_default=True, help="Rows of features.", metavar="N")
@click.option("--width", type=int, default=2048, show_default=True, help="Width of features.", metavar="D")
@click.option(
    "--neighbours", "sizes", type=int, multiple=True, default=(10_000, 20_000), show_default=True,
    help="Rows of precision and recall; several times.", metavar="N",
)  # fmt: skip
@click.option("--images", type=int, default=50_000, show_default=True, help="Images that stream through.", metavar="N")
@click.option("--repeats", type=int, default=1, show_default=True, help="Best of so many.", metavar="N")
@click.option("--out", type=Path, help="Write the table as JSON.", metavar="FILE")
@click.option("--part", help="One part, for a process of its own.", metavar="NAME")
@click.option("--numbers", type=int, multiple=True, help="Its numbers.", metavar="N")
def main(
    num: int,
    width: int,
    sizes: tuple[int, ...],
    images: int,
    repeats: int,
    out: Path | None,
    part: str | None,
    numbers: tuple[int, ...],
) -> None:
    torch.set_num_threads(1)
    keep_large_buffers()
    if part is not None:
        click.echo(json.dumps({"neighbours": neighbours, "memory": memory}[part](*numbers)))
        return
    x, y = features(4000, width, 0), features(4000, width, 1)
    measured = [alone("neighbours", rows, width) for rows in sorted(set(sizes))]
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        "torch": torch.__version__,
        "num": num,
        "width": width,
        "statistics": statistics(num, width, repeats),
        "float32_products": float32_products(num, width),
        "kernel_distance_sec": cpu_sec(lambda: kernel_distance(x, y), 1),
        "precision_recall": measured,
        "stream": alone("memory", images),
        "decoding": decoding(299, 128),
    }
    if measured[-1]["num"] < LARGE:
        pairs = (LARGE / measured[-1]["num"]) ** 2
        results["precision_recall_extrapolated"] = {"num": LARGE, "sec": measured[-1]["sec"] * pairs}
    click.echo(json.dumps(results, indent=2))
    if out is not None:
        with atomic_write(out) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
