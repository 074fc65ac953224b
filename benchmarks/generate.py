"""Images a second of a generator, by batch, and against a published checkout.

    python -m benchmarks.generate --network=paper256,wide256
    python -m benchmarks.generate --network=paper256 --cond=none --peer=../stylegan2-ada-pytorch

Weights are random, styles mapped anew for every image, noise constant. CPU seconds of the process with one thread
unless --threads says another number, or the GPU's own clock; the least of --repeats, in --rounds rounds that alternate
with the peer's.
"""

from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.networks import NETWORKS, PRECISIONS, conditions, make_system, peer_spec
from benchmarks.peer.clocks import least, peak_mib, reset_peak
from benchmarks.peer.run import run_peer
from benchmarks.timing import MODES, machine, words, write_json
from torch_utils import custom_ops
from torch_utils.command_line import Command
from torch_utils.misc import keep_large_buffers, pick_device


def measure(G: torch.nn.Module, batches: list[int], device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of a batch, by its size, and the most memory."""

    @torch.no_grad()
    def generate(num: int) -> None:
        condition = conditions(G, num, device)
        G(torch.randn(num, G.z_dim, device=device), condition.c, condition.h, noise_mode="const")

    reset_peak(device)
    times = least([lambda num=num: generate(num) for num in batches], device, repeats)
    return {"sec": {str(num): time for num, time in zip(batches, times, strict=True)}, "peak_mib": peak_mib(device)}


def merge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rounds of one configuration: the most images a second of each batch."""
    times = {num: min(row["sec"][num] for row in rows) for num in rows[0]["sec"]}
    return rows[-1] | {"sec": times, "images_per_sec": {num: int(num) / time for num, time in times.items()}}


@click.command(cls=Command, help=__doc__)
@click.option("--network", "names", default="paper256", show_default=True, help=f"Some of {', '.join(NETWORKS)}.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--ops", "modes", default="native", show_default=True, help="native, ref or both: native,ref.")
@click.option("--precision", "precisions", default="fp32", show_default=True, help="Some of fp32,tf32,fp16,bf16.")
@click.option("--cond", type=click.Choice(["none", "instance"]), default="instance", show_default=True)
@click.option("--batch", "batches", default="1,8", show_default=True, help="Images at a time.", metavar="N,N")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the CPU.", metavar="N")
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Of each batch, in a round.", metavar="N"
)
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--peer", type=Path, help="A checkout laid out as stylegan2-ada-pytorch, to compare with.", metavar="DIR")
@click.option("--out", type=Path, help="Write the table as JSON.", metavar="FILE")
def main(
    names: str,
    device: str,
    modes: str,
    precisions: str,
    cond: str,
    batches: str,
    threads: int,
    repeats: int,
    rounds: int,
    peer: Path | None,
    out: Path | None,
) -> None:
    where, sizes = (
        pick_device(device),
        [int(word) for word in words("batch", batches, [str(n) for n in range(1, 1025)])],
    )
    torch.set_num_threads(threads)
    keep_large_buffers()
    rows: dict[str, dict[str, Any]] = {}
    for name in words("network", names, list(NETWORKS)):
        for precision in words("precision", precisions, PRECISIONS):
            theirs: list[dict[str, Any]] = []
            spec = {} if peer is None else peer_spec(name, precision, cond, max(sizes), where)
            for mode in words("ops", modes, MODES):
                custom_ops.set_mode(mode)
                custom_ops.prepare(where)
                G = make_system(name, precision, cond, max(sizes), where).networks["G"].eval()
                ours = []
                for _ in range(rounds):
                    ours.append(measure(G, sizes, where, repeats))
                    if peer is not None:
                        wanted = spec | {"measure": "generate", "batches": sizes, "repeats": repeats}
                        theirs.append(run_peer(peer, wanted))
                rows[f"{name} {mode} {precision}"] = merge(ours)
                show(f"{name} {mode} {precision}", rows[f"{name} {mode} {precision}"])
            if theirs:
                rows[f"{name} peer {precision}"] = merge(theirs)
                show(f"{name} peer {precision}", rows[f"{name} peer {precision}"])
    if out is not None:
        write_json(out, machine(where) | {"cond": cond, "rows": rows})


def show(title: str, row: dict[str, Any]) -> None:
    rates = "  ".join(f"batch {num}: {rate:.3g} images/s" for num, rate in row["images_per_sec"].items())
    click.echo(f"{title:<24} {rates}  {row['peak_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
