"""Which way to search for neighbours, and how long it takes: from sizes and the measured speed of a product."""

import time
from typing import NamedTuple

import torch

from stylegan2_icgan.search import ivf as ivf_search
from stylegan2_icgan.search import rerank as rerank_search
from stylegan2_icgan.search.unit_rows import highest_precision
from torch_utils.command_line import UserError, nearest
from torch_utils.files import format_time
from torch_utils.misc import free_memory

METHODS = ("auto", "exact", "faiss", "rerank", "ivf")
FEW_ROWS = 20_000  # searched exactly whatever it takes
EXACT_SEC, RERANK_SEC = 600, 3600  # the longest an exact search, and one of all rows, may take unasked
MEMORY_SHARE = 0.5  # of the free memory that an index may take
WORTH_IT = 1.2  # bfloat16 products have to be this much faster than float32 ones
MEASURE_SEC = 0.1
# Seconds beside the products, measured on one core of a Zen 3 EPYC; a GPU takes a hundredth.
SCORE_SEC, VALUE_SEC, QUERY_SEC, CELL_SEC = 0.7e-9, 1.3e-9, 2e-5, 1e-4


class Speed(NamedTuple):
    """Multiplications and additions a second in products of matrices."""

    float32: float
    bfloat16: float

    @property
    def bf16_pays(self) -> bool:
        return self.bfloat16 > WORTH_IT * self.float32


def measure_speed(device: torch.device) -> Speed:
    """Speed of products of two [n, n] matrices; takes about 0.2 s."""
    with highest_precision():
        return Speed(*(_product_speed(device, dtype) for dtype in (torch.float32, torch.bfloat16)))


def _product_speed(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 512
    x = torch.ones(size, size, device=device, dtype=dtype)
    best, start = float("inf"), time.perf_counter()
    first = True
    while first or time.perf_counter() - start < MEASURE_SEC:
        begin = time.perf_counter()
        float((x @ x)[0, 0])  # waits for the device
        taken, first = time.perf_counter() - begin, False
        best = min(best, taken)
    return 2 * size**3 / best


def choose_method(
    method: str,
    num: int,
    h_dim: int,
    k: int,
    device: torch.device,
    speed: Speed | None = None,
    processes: int = 1,
    memory: int | None = None,
) -> tuple[str, str]:
    """The method to use and a sentence that says why; the same for the same numbers.

    Args:
        method: what was asked for; anything but auto is taken.
        num, h_dim, k: rows, their width, neighbours of each.
        speed: measured now when None.
        processes: how many share the queries.
        memory: bytes that are free on the host; measured now when None.

    Raises:
        UserError: an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"neighbours by {method!r}; expected one of {', '.join(METHODS)}.{nearest(method, METHODS)}")
    if method != "auto":
        return method, f"{method}: asked for"
    if num <= FEW_ROWS:
        return "exact", f"exact: {num:,} rows are few"
    speed = speed or measure_speed(device)
    took = {
        name: estimate_sec(name, num, h_dim, k, device, speed, processes=processes)
        for name in ("exact", "rerank", "ivf")
    }
    text = {name: format_time(seconds) for name, seconds in took.items()}
    on = f"{speed.float32 / 1e9:,.0f} GFLOP/s on {device.type}" + (
        f" in {processes} processes" if processes > 1 else ""
    )
    if took["exact"] <= EXACT_SEC:
        return "exact", f"exact: all {num:,} rows of width {h_dim} take about {text['exact']} at {on}"
    memory = free_memory(torch.device("cpu")) if memory is None else memory
    fits = {name: index_bytes(name, num, speed.bf16_pays) <= MEMORY_SHARE * memory for name in ("rerank", "ivf")}
    projects = fits["rerank"] and (speed.bf16_pays or h_dim >= 2 * rerank_search.DIM)
    if not fits["ivf"] and not projects:
        needed = index_bytes("ivf", num, speed.bf16_pays) / 2**30
        return "exact", (
            f"exact: takes about {text['exact']} at {on}; an inverted file takes {text['ivf']}, but {needed:,.1f} GiB, "
            f"and {memory / 2**30:,.1f} GiB of memory are free"
        )
    if not fits["ivf"]:
        return "rerank", f"rerank: takes about {text['rerank']} at {on}; an inverted file does not fit the free memory"
    if projects and took["rerank"] <= min(RERANK_SEC, took["exact"] / 2):
        return "rerank", f"rerank: exact takes about {text['exact']} at {on}, scores re-ranked {text['rerank']}"
    return "ivf", f"ivf: exact takes about {text['exact']} at {on}, an inverted file {text['ivf']}"


def estimate_sec(
    method: str,
    num: int,
    h_dim: int,
    k: int,
    device: torch.device,
    speed: Speed | None = None,
    num_queries: int | None = None,
    processes: int = 1,
) -> float:
    """About how long the search takes, the index included, in seconds; within a factor of two where it was tried.

    Args:
        num_queries: rows still to search; None: all.
        processes: how many share the queries; the index is built by one.
    """
    speed = speed or measure_speed(device)
    queries = num if num_queries is None else num_queries
    scale = 0.01 if device.type == "cuda" else 1.0
    ranked = scale * (QUERY_SEC + VALUE_SEC * h_dim * (k + 5))
    exact = num * (2 * h_dim / speed.float32 + scale * SCORE_SEC) + ranked
    if method in ("exact", "faiss"):
        return queries * exact / processes
    checked = 2 * recall_rows(num) * exact
    fitted = (2 * 16384 * h_dim**2 + 20 * h_dim**3) / speed.float32
    if method == "rerank":
        score = 2 * h_dim / speed.bfloat16 if speed.bf16_pays else 2 * rerank_search.DIM / speed.float32
        candidates = scale * VALUE_SEC * h_dim * rerank_search.EXTRA[0] / 2
        build = fitted + num * 2 * h_dim * rerank_search.DIM / speed.float32 + checked
        return build + queries * (num * (score + scale * 2 * SCORE_SEC) + candidates + ranked) / processes
    cells = ivf_search.CELLS_PER_ROOT * num**0.5
    points = num + cells * ivf_search.ROWS_PER_CELL * ivf_search.ITERATIONS
    build = fitted + 2 * ivf_search.DIM * (num * h_dim + points * cells) / speed.float32 + checked
    # Half a hundred cells a query, and products of a few hundred rows at half the speed of large ones.
    probed = 48 * (num / cells) * (2 * 2 * h_dim / speed.float32 + 2 * scale * SCORE_SEC) + scale * CELL_SEC
    return float(build + queries * (probed + ranked) / processes)


def index_bytes(method: str, num: int, bf16_pays: bool) -> int:
    """Memory that an index takes while it is made: projected rows in float32, or the nearest cells of each row."""
    if method == "rerank":
        return 0 if bf16_pays else 4 * rerank_search.DIM * num
    return (2 * ivf_search.NUM_PROBES[-1] + 8) * num


def recall_rows(num: int) -> int:
    """How many rows an index is measured with while it is built."""
    return min(512, num)
