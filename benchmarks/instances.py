"""How fast are neighbours found and images loaded, and with how much memory?

    python benchmarks/instances.py --out=benchmarks/results/instances.json
    python benchmarks/instances.py --only=exact-20k --only=loader

CPU seconds of one thread, each row in a process of its own, medians of repeats; beside them the goal, and the floor or
best figure that was measured on another machine (two-core Zen 4 with AVX-512 and bfloat16). Features are made: see
benchmarks/made_features.py. The row `ivf-1280k` writes a file of 5 GB, searches 20,000 rows and says what all take.
"""

import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from benchmarks.loader_rows import loader_rows
from benchmarks.made_features import clustered, clustered_file, unclustered
from stylegan2_icgan.neighbours import Search, make_search, measure_recall
from stylegan2_icgan.search import ivf as ivf_search
from stylegan2_icgan.search.ivf import IvfSearch, nearest_cells
from stylegan2_icgan.search.recall import Truth
from stylegan2_icgan.search.unit_rows import UnitRows
from torch_utils.command_line import Command, UserError
from torch_utils.files import atomic_write, format_time

K, MIB = 50, 2**20
Values = dict[str, Any]


class Sizes(NamedTuple):
    """What a row works on; --quick takes less of everything."""

    num: int
    h_dim: int
    queries: int  # timed at once
    recall_sample: int
    repeats: int
    images: int  # of the loader rows


def exact(sizes: Sizes, scratch: Path) -> Values:
    """All rows against all, and faiss.knn on the same in the same process, in turn."""
    before = _memory("VmRSS")
    features = clustered(sizes.num, sizes.h_dim)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: making them took more than searching does
    search = make_search(features, K, "exact")
    rows = np.arange(sizes.queries)
    first = _timed(search, rows)
    peak = _memory("VmHWM") - before
    import faiss

    faiss.omp_set_num_threads(1)
    ours, theirs = [first], []
    for _ in range(sizes.repeats):
        start = time.process_time()
        faiss.knn(features[rows], features, K + 1)
        theirs.append((time.process_time() - start) / len(rows) * 1e3)
        ours.append(_timed(search, rows))
    values = {"ms_per_query": statistics.median(ours), "faiss_ms_per_query": statistics.median(theirs)}
    return values | {"times_faiss": values["ms_per_query"] / values["faiss_ms_per_query"], "memory_mib": peak}


def approximate(method: str, sizes: Sizes, scratch: Path) -> Values:
    """Rows of a large set by an index, the index timed apart."""
    features = clustered(sizes.num, sizes.h_dim)
    start = time.process_time()
    search = make_search(features, K, method)
    build = time.process_time() - start
    rows = search.query_order()[: sizes.queries]
    took = statistics.median(_timed(search, rows) for _ in range(sizes.repeats))
    recall = measure_recall(search, features, K, sizes.recall_sample, seed=1)
    return {"ms_per_query": took, "recall": recall, "build_sec": build, "search": search.description}


def rerank(sizes: Sizes, scratch: Path) -> Values:
    return approximate("rerank", sizes, scratch)


def ivf(sizes: Sizes, scratch: Path) -> Values:
    return approximate("ivf", sizes, scratch)


def ivf_unclustered(sizes: Sizes, scratch: Path) -> Values:
    """What an inverted file finds where there are no clusters, and what `make_search` makes of it."""
    features = unclustered(sizes.num, sizes.h_dim)
    unit = UnitRows(features)
    truth, probes = Truth(unit, K, sizes.recall_sample, seed=1), nearest_cells(unit, seed=0)
    values: Values = {}
    for num_probes in (8, ivf_search.NUM_PROBES[-1]):
        search = IvfSearch(unit, K, probes, min(num_probes, probes.shape[1]))
        values[f"recall_{num_probes}_cells"] = truth.recall(search.search(truth.rows)[1])
        values[f"searched_share_{num_probes}_cells"] = search.searched_share(truth.rows)
    return values | {"search": make_search(features, K, "ivf").description}


def ivf_large(sizes: Sizes, scratch: Path) -> Values:
    """Memory-mapped float16 rows: some queries timed, the time of all extrapolated."""
    needed, free = sizes.num * sizes.h_dim * 2, _free_bytes(scratch)
    if free < 1.1 * needed:
        raise UserError(
            f"--scratch={scratch} has {free / 1e9:.1f} GB free, ivf-1280k writes {needed / 1e9:.1f} GB; name a folder "
            "with more room"
        )
    file = scratch / "features.npy"
    try:
        clustered_file(file, sizes.num, sizes.h_dim)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_search_file, file, sizes).result()  # memory of the search alone
    finally:
        file.unlink(missing_ok=True)


def _search_file(file: Path, sizes: Sizes) -> Values:
    torch.set_num_threads(1)
    before = _memory("VmRSS")
    features = np.load(file, mmap_mode="r")
    start = time.process_time()
    search = make_search(features, K, "ivf")
    build = time.process_time() - start
    took = _timed(search, search.query_order()[: sizes.queries])
    peak = _memory("VmHWM") - before
    whole = build + took * sizes.num / 1e3
    recall = measure_recall(search, features, K, sizes.recall_sample, seed=1)
    values: Values = {"ms_per_query": took, "recall": recall, "build_sec": build, "memory_mib": peak}
    return values | {"whole_set_sec": whole, "whole_set": format_time(whole), "search": search.description}


def loader(sizes: Sizes, scratch: Path) -> Values:
    return loader_rows(scratch, sizes.images, sizes.repeats)


class Row(NamedTuple):
    """A line of the table."""

    measure: Callable[[Sizes, Path], Values]
    sizes: Sizes
    goals: dict[str, tuple[str, float]]  # of a value: "<=" or ">=", and the number
    floor: str  # as measured elsewhere, or what can't be beaten


ROWS = {
    "exact-20k": Row(
        exact,
        Sizes(20_000, 2048, 8192, 0, 3, 0),
        {"times_faiss": ("<=", 1.2), "memory_mib": ("<=", 1024)},
        "faiss.knn in the same run",
    ),
    "exact-100k": Row(
        exact, Sizes(100_000, 2048, 2048, 0, 3, 0), {"times_faiss": ("<=", 1.2)}, "faiss 4.2 ms on Zen 4"
    ),
    "rerank-100k": Row(
        rerank,
        Sizes(100_000, 2048, 8192, 1000, 3, 0),
        {"ms_per_query": ("<=", 3.3), "recall": (">=", 0.999)},
        "PCA to 256 and re-ranking on Zen 4: 2.1 ms",
    ),
    "ivf-100k": Row(
        ivf,
        Sizes(100_000, 2048, 8192, 1000, 3, 0),
        {"ms_per_query": ("<=", 1.0), "recall": (">=", 0.99)},
        "512 cells, 8 searched, on Zen 4: 0.77 ms, recall 0.998",
    ),
    "ivf-unclustered-100k": Row(
        ivf_unclustered, Sizes(100_000, 2048, 0, 300, 1, 0), {}, "8 cells on Zen 4: recall 0.07 to 0.38"
    ),
    "ivf-1280k": Row(
        ivf_large,
        Sizes(1_280_000, 2048, 20_000, 200, 1, 0),
        {"memory_mib": ("<=", 16384), "recall": (">=", 0.99)},
        "estimate for Zen 4: 1 to 1.5 hours",
    ),
    "loader": Row(
        loader,
        Sizes(0, 0, 0, 0, 5, 4000),
        {"cached_64px_images_per_sec": (">=", 50_000), "decoded_256px_images_per_sec": (">=", 700)},
        "on Zen 4: memory map 112,000, pyspng alone 770",
    ),
}
QUICK = Sizes(num=3000, h_dim=512, queries=200, recall_sample=50, repeats=1, images=40)


def run_row(name: str, quick: bool, repeats: int | None, scratch: Path) -> Values:
    """The values of a row, in the process that calls."""
    torch.set_num_threads(1)
    row = ROWS[name]
    sizes = QUICK if quick else row.sizes
    return row.measure(sizes if repeats is None else sizes._replace(repeats=repeats), scratch)


def table(results: Values) -> str:
    """Markdown; goals stand only beside full-size runs."""
    lines = ["| row | measured | goal | floor, or measured elsewhere |", "|---|---|---|---|"]
    for name, row in ROWS.items():
        values = results["rows"].get(name)
        if values is None:
            continue
        numbers = {key: value for key, value in values.items() if isinstance(value, float)}
        measured = ", ".join(f"{key} {_short(value)}" for key, value in numbers.items())
        full = not results["quick"]
        met = [f"{key} {sign} {goal:g}{_verdict(values[key], sign, goal)}" for key, (sign, goal) in row.goals.items()]
        lines.append(f"| {name} | {measured} | {', '.join(met) if full else ''} | {row.floor if full else ''} |")
    return "\n".join(lines)


def _verdict(value: float, sign: str, goal: float) -> str:
    return "" if (value <= goal if sign == "<=" else value >= goal) else " (MISSED)"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _timed(search: Search, rows: np.ndarray) -> float:
    """Milliseconds of CPU a query."""
    start = time.process_time()
    search.search(rows)
    return (time.process_time() - start) / len(rows) * 1e3


def _memory(field: str) -> float:
    """VmRSS (now) or VmHWM (at most since the start) of this process in MiB, mapped files counted; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {field} in /proc/self/status")


def _free_bytes(folder: Path) -> int:
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    fields = {key.strip(): value for key, value in fields.items()}
    numbers = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{fields.get('model name', platform.processor())} ({numbers}, {torch.backends.cpu.get_cpu_capability()})"


@click.command(cls=Command, help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="Rows to measure; others stay as they are.")
@click.option("--quick", is_flag=True, help="Small sizes, to see that everything runs; no goals.")
@click.option("--repeats", type=click.IntRange(min=1), help="Instead of those of each row.")
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="For a file of 5 GB, deleted again.",
)
@click.option("--out", type=Path, default=Path("benchmarks/results/instances.json"), show_default=True, help="Results.")
def main(only: tuple[str, ...], quick: bool, repeats: int | None, scratch: Path | None, out: Path) -> None:
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    results: Values = json.loads(out.read_text()) if out.exists() else {"rows": {}, "quick": quick}
    if results["quick"] != quick:
        raise UserError(f"--out={out} holds {'quick' if results['quick'] else 'full'} runs; name another file")
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    results |= {"k": K, "cpu": _cpu_model(), "threads": 1, "versions": versions}
    for name in only or ROWS:
        context = multiprocessing.get_context("spawn")
        with (
            tempfile.TemporaryDirectory(dir=scratch) as folder,
            ProcessPoolExecutor(1, mp_context=context) as pool,
        ):
            results["rows"][name] = pool.submit(run_row, name, quick, repeats, Path(folder)).result()
        click.echo(f"{name}: {json.dumps(results['rows'][name])}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())
    click.echo(table(results))


if __name__ == "__main__":
    sys.exit(main())
