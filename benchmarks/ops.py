"""How far are bias_act and upfirdn2d from what the memory allows? Every dtype, layout and direction.

    python -m benchmarks.ops                        the device there is; benchmarks/results/ops-<device>.json
    python -m benchmarks.ops --device=cpu --quick

The floor of a row is the time that a copy of as many bytes takes, measured in turns with it: the tensors that the
operation cannot but read and write, each once. On the CPU one thread works and process time counts; on a GPU, its own
clock. 'times' is the measured time over the floor. On the CPU 3x3 convolutions follow, native against torch's; they are
bound by arithmetic.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peer.clocks import least
from benchmarks.timing import RESULTS, machine, write_json
from torch_utils import custom_ops
from torch_utils.command_line import Command
from torch_utils.misc import keep_large_buffers, pick_device
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv3x3_native import conv3x3
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upsample2d

SHAPES = {"cpu": [16, 128, 64, 64], "cuda": [64, 256, 128, 128]}  # 32 MiB and 1 GiB in float32: beyond any cache
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONVOLUTIONS = ((64, 64), (128, 64), (128, 32), (512, 16))  # channels, side; 16 images
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


def copy_work(num_bytes: int, device: torch.device) -> Callable[[], object]:
    """A copy that reads and writes as many bytes, half of them each."""
    x = torch.zeros(num_bytes // 8, device=device)
    y = torch.zeros_like(x)
    return lambda: y.copy_(x)


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


def run_all(device: torch.device, quick: bool, shape: list[int] | None = None) -> dict[str, Any]:
    """All rows, printed on the way."""
    shape, repeats = shape or SHAPES[device.type], 3 if quick else 15
    click.echo(f"{device}: x is {shape}")
    click.echo(
        f"{'operation':<16}{'dtype':<10}{'layout':<8}{'direction':<17}{'native ms':>10}{'times':>7}{'ref ms':>10}"
    )
    rows: list[dict[str, Any]] = []
    for name, kind in OPERATIONS.items():
        for dtype_name, dtype in DTYPES.items():
            for layout_name, layout in LAYOUTS.items():
                x = torch.randn(shape, device=device).to(dtype).to(memory_format=layout)
                for direction, sizes in zip(DIRECTIONS, kind.passes, strict=True):
                    num_bytes = int(sizes * x.numel() * x.element_size())
                    works = [copy_work(num_bytes, device), direction_work(kind, direction, x, "native")]
                    floor, native = least(works, device, repeats)
                    row: dict[str, Any] = {"operation": name, "dtype": dtype_name, "layout": layout_name}
                    row |= {"direction": direction, "floor_ms": 1e3 * floor, "native_ms": 1e3 * native}
                    row |= {"copy_gb_per_sec": num_bytes / floor / 1e9, "times": native / floor}
                    if not quick:
                        row["ref_ms"] = 1e3 * least([direction_work(kind, direction, x, "ref")], device, 2)[0]
                    rows.append(row)
                    click.echo(
                        f"{name:<16}{dtype_name:<10}{layout_name:<8}{direction:<17}{row['native_ms']:>10.2f}"
                        f"{row['times']:>7.2f}{row.get('ref_ms', float('nan')):>10.2f}"
                    )
    return {"shape": shape, "quick": quick, "rows": rows}


def convolution_works(num: int, channels: int, side: int) -> dict[str, list[Callable[[], object]]]:
    """Direction -> native and torch's: float32, channels last, as training calls them on the CPU."""
    x = torch.randn(num, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(channels, channels, 3, 3).requires_grad_()
    kinds = (lambda: conv3x3(x, w, False), lambda: functional.conv2d(x, w, padding=1))
    results = [kind() for kind in kinds]
    dy = torch.randn_like(results[1])
    backward = [lambda y=y: torch.autograd.grad(y, [x, w], dy, retain_graph=True) for y in results]
    return {"forward": [torch.no_grad()(kind) for kind in kinds], "backward": backward}


def run_convolutions(quick: bool) -> list[dict[str, Any]]:
    """3x3 convolutions, native against torch's."""
    rows = []
    for channels, side in CONVOLUTIONS:
        for direction, works in convolution_works(2 if quick else 16, channels, side).items():
            native, plain = (1e3 * sec for sec in least(works, torch.device("cpu"), 2 if quick else 5))
            rows.append({"channels": channels, "side": side, "direction": direction})
            rows[-1] |= {"native_ms": native, "torch_ms": plain, "times_faster": plain / native}
            click.echo(f"3x3, {channels:>3} channels, {side} px {direction:<9}{native:>8.1f} ms, torch {plain:.1f} ms")
    return rows


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", default="auto", help="auto, cpu or cuda.  [default: auto]")
@click.option("--quick", is_flag=True, help="Three repetitions in place of 15, no reference.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: benchmarks/results/ops-<device>.json]")
def main(device: str, quick: bool, out: Path | None) -> None:
    """Time the native ops and the reference against the memory floor."""
    torch.set_num_threads(1)
    keep_large_buffers()
    custom_ops.set_mode("native")
    where = pick_device(device)
    custom_ops.prepare(where)
    facts = machine(where)
    path = out or RESULTS / f"ops-{facts['device'].lower().replace(' ', '-')}.json"
    results = facts | run_all(where, quick)
    if where.type == "cpu":
        results["convolutions"] = run_convolutions(quick)
    write_json(path, results)
    click.echo(f"written: {path}")


if __name__ == "__main__":
    main()
