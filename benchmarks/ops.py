"""How far are bias_act and upfirdn2d from what the memory allows? Every dtype, layout and direction.

    python -m benchmarks.ops                        the device there is; benchmarks/results/ops-<device>.json
    python -m benchmarks.ops --device=cpu --quick

The floor of a row is the time that a copy of as many bytes takes, measured in the same run: the tensors that the
operation cannot but read and write, each once. On the CPU one thread works and process time counts; on a GPU, its own
clock. 'times' is the measured time over the floor.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from torch_utils import custom_ops
from torch_utils.command_line import Command
from torch_utils.files import atomic_write
from torch_utils.misc import keep_large_buffers, pick_device
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upsample2d

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"cpu": [16, 128, 64, 64], "cuda": [64, 256, 128, 128]}  # 32 MiB and 1 GiB in float32: beyond any cache
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIRECTIONS = ("forward", "backward", "double backward")
Operation = Callable[[Tensor, Tensor, Tensor, str], Tensor]  # x, bias, filter, impl


class Row(NamedTuple):
    """One line of the table below."""

    operation: Operation
    passes: tuple[float, float, float]  # what a direction cannot but read and write, in sizes of x
    has_bias: bool = False
    is_curved: bool = False  # x too has a gradient of second order


OPERATIONS: dict[str, Row] = {
    "bias_act lrelu": Row(lambda x, b, f, impl: bias_act(x, b, act="lrelu", impl=impl), (2, 3, 3), has_bias=True),
    "bias_act swish": Row(lambda x, b, f, impl: bias_act(x, b, act="swish", impl=impl), (2, 3, 7), True, True),
    "up 2": Row(lambda x, b, f, impl: upsample2d(x, f, impl=impl), (5, 5, 5)),
    "down 2": Row(lambda x, b, f, impl: downsample2d(x, f, impl=impl), (1.25, 1.25, 1.25)),
    "filter": Row(lambda x, b, f, impl: filter2d(x, f, impl=impl), (2, 2, 2)),
}


def measure(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Least time in seconds, of the process or of the GPU, after one call that doesn't count.

    The least, since what else runs on a machine adds to a time and never takes from it; the copy is timed likewise.
    """
    work()
    seconds: list[float] = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            torch.cuda.synchronize(device)
            seconds.append(start.elapsed_time(end) / 1000)
        else:
            began = time.process_time()
            work()
            seconds.append(time.process_time() - began)
    return min(seconds)


def copy_rate(device: torch.device, shape: list[int], repeats: int) -> float:
    """Bytes read and written per second by a copy."""
    x = torch.randn(shape, device=device)
    y = torch.empty_like(x)
    return 2 * x.numel() * x.element_size() / measure(lambda: y.copy_(x), device, 3 * repeats)


def direction_work(kind: Row, direction: str, x: Tensor, impl: str) -> Callable[[], object]:
    """What is to be timed. A backward pass is repeated on one graph."""
    b = torch.linspace(-1, 1, x.shape[1], device=x.device, dtype=x.dtype)
    f = setup_filter([1, 3, 3, 1], device=x.device)
    if direction == "forward":
        return lambda: kind.operation(x, b, f, impl)
    x, b = x.detach().requires_grad_(), b.requires_grad_()
    y = kind.operation(x, b, f, impl)
    dy = torch.randn_like(y).requires_grad_()
    inputs = [x, b] if kind.has_bias else [x]
    if direction == "backward":
        return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)
    dx = torch.autograd.grad(y, x, dy, create_graph=True)[0]
    ddx = torch.randn_like(dx)
    into = [dy, x] if kind.is_curved else [dy]
    return lambda: torch.autograd.grad(dx, into, ddx, retain_graph=True)


def run_all(device: torch.device, quick: bool) -> dict[str, Any]:
    """All rows, printed on the way."""
    shape, repeats = SHAPES[device.type], 3 if quick else 9
    rate = copy_rate(device, shape, repeats)
    click.echo(f"{device}: copy {rate / 1e9:.1f} GB/s; x is {shape}")
    click.echo(
        f"{'operation':<16}{'dtype':<10}{'layout':<8}{'direction':<17}{'native ms':>10}{'times':>7}{'ref ms':>10}"
    )
    rows: list[dict[str, Any]] = []
    for name, kind in OPERATIONS.items():
        for dtype_name, dtype in DTYPES.items():
            for layout_name, layout in LAYOUTS.items():
                x = torch.randn(shape, device=device).to(dtype).to(memory_format=layout)
                for direction, sizes in zip(DIRECTIONS, kind.passes, strict=True):
                    row: dict[str, Any] = {"operation": name, "dtype": dtype_name, "layout": layout_name}
                    row |= {"direction": direction, "floor_ms": 1e3 * sizes * x.numel() * x.element_size() / rate}
                    for impl in ("native",) if quick else ("native", "ref"):
                        work = direction_work(kind, direction, x, impl)
                        row[f"{impl}_ms"] = 1e3 * measure(work, device, repeats if impl == "native" else 2)
                    row["times"] = row["native_ms"] / row["floor_ms"]
                    rows.append(row)
                    click.echo(
                        f"{name:<16}{dtype_name:<10}{layout_name:<8}{direction:<17}{row['native_ms']:>10.2f}"
                        f"{row['times']:>7.2f}{row.get('ref_ms', float('nan')):>10.2f}"
                    )
    return {"copy_bytes_per_sec": rate, "shape": shape, "quick": quick, "rows": rows}


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", default="auto", help="auto, cpu or cuda.  [default: auto]")
@click.option("--quick", is_flag=True, help="Three repetitions, no reference.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: benchmarks/results/ops-<device>.json]")
def main(device: str, quick: bool, out: Path | None) -> None:
    """Time the native ops and the reference against the memory floor."""
    torch.set_num_threads(1)
    keep_large_buffers()
    custom_ops.set_mode("native")
    where = pick_device(device)
    custom_ops.prepare(where)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    results = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "machine": platform.machine()}
    results |= run_all(where, quick)
    path = out or ROOT / "benchmarks" / "results" / f"ops-{name.lower().replace(' ', '-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    click.echo(f"written: {path}")


if __name__ == "__main__":
    main()
