"""What a training step costs, phase by phase, and against a published checkout.

    python -m benchmarks.step --network=small --ops=native,ref
    python -m benchmarks.step --network=paper256 --precision=tf32,fp16,bf16 --aug=ada --graphs
    python -m benchmarks.step --network=small --cond=none --peer=../stylegan2-ada-pytorch

On the CPU, seconds are those of the process, with one thread unless --threads says another number; on a GPU its own
clock's. A figure is the least of --repeats, in --rounds rounds that alternate with the peer's. 'step' is what a step
costs on average, each phase as often as it is run. Images are noise; nothing that is measured depends on them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.networks import NETWORKS, PRECISIONS, Conditions, make_system, peer_spec
from benchmarks.peer.clocks import least, peak_mib, reset_peak, wall_seconds
from benchmarks.peer.run import check_checkout, run_peer
from benchmarks.timing import MODES, machine, words, write_json
from stylegan2_icgan.systems import SYSTEMS
from torch_utils import custom_ops
from torch_utils.command_line import Command
from torch_utils.misc import keep_large_buffers, pick_device
from training.graphs import check_graphs, record
from training.system import System

Times = dict[str, float]


def works_of(conditions: Conditions) -> dict[str, Callable[[], None]]:
    """Phase -> what runs it once."""
    return {phase.name: lambda phase=phase: conditions.run(phase) for phase in conditions.system.phases}


def per_step(times: Times, system: System) -> float:
    """Seconds of a step, phases as often as they are due."""
    return sum(times[phase.name] / phase.interval for phase in system.phases)


def measure(conditions: Conditions, repeats: int) -> dict[str, Any]:
    """Seconds of the phases and of a step, images a second, and the most memory."""
    reset_peak(conditions.device)
    works = works_of(conditions)
    times = dict(zip(works, least(list(works.values()), conditions.device, repeats), strict=True))
    step = per_step(times, conditions.system)
    row: dict[str, Any] = {"sec": times, "step_sec": step, "images_per_sec": conditions.batch / step}
    if conditions.device.type == "cuda":
        # A GPU that waits for its host shows as time on the wall beyond that of the GPU.
        wall = wall_seconds(lambda: [work() for _ in range(repeats) for work in works.values()], conditions.device)
        row["wall_over_gpu"] = wall / repeats / sum(times.values())
    return row | {"peak_mib": peak_mib(conditions.device)}


def merge(rows: list[dict[str, Any]], batch: int, intervals: dict[str, int]) -> dict[str, Any]:
    """Rounds of one configuration: the least of each phase."""
    times = {name: min(row["sec"][name] for row in rows) for name in rows[0]["sec"]}
    step = sum(times[name] / interval for name, interval in intervals.items())
    return rows[-1] | {"sec": times, "step_sec": step, "images_per_sec": batch / step}


@click.command(cls=Command, help=__doc__)
@click.option("--network", "name", type=click.Choice(list(NETWORKS)), default="small", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--ops", "modes", default="native", show_default=True, help="native, ref or both: native,ref.")
@click.option("--precision", "precisions", default="fp32", show_default=True, help="Some of fp32,tf32,fp16,bf16.")
@click.option("--cond", type=click.Choice(["none", "instance"]), default="instance", show_default=True)
@click.option("--aug", type=click.Choice(["none", "ada"]), default="none", show_default=True, help="ada: at p = 0.5.")
@click.option("--graphs", is_flag=True, help="As of train.py: CUDA graphs of the passes.")
@click.option("--batch", type=click.IntRange(1), help="Images a step.  [default: the network's]", metavar="N")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the CPU.", metavar="N")
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Of each phase, in a round.", metavar="N"
)
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--peer", type=Path, help="A checkout laid out as stylegan2-ada-pytorch, to compare with.", metavar="DIR")
@click.option("--out", type=Path, help="Write the table as JSON.", metavar="FILE")
def main(
    name: str,
    device: str,
    modes: str,
    precisions: str,
    cond: str,
    aug: str,
    graphs: bool,
    batch: int | None,
    threads: int,
    repeats: int,
    rounds: int,
    peer: Path | None,
    out: Path | None,
) -> None:
    where, num = pick_device(device), batch or NETWORKS[name].batch
    torch.set_num_threads(threads)
    keep_large_buffers()
    wanted = [
        (mode, precision)
        for precision in words("precision", precisions, PRECISIONS)
        for mode in words("ops", modes, MODES)
    ]
    if peer is not None:
        check_checkout(peer)
        specs = {precision: peer_spec(name, precision, cond, num, where) for _, precision in wanted}
    rows: dict[str, dict[str, Any]] = {}
    for mode, precision in wanted:
        custom_ops.set_mode(mode)
        custom_ops.prepare(where)
        system = make_system(name, precision, cond, num, where)
        if graphs:
            check_graphs(name, SYSTEMS[NETWORKS[name].system], where)
            record(system)
        conditions = Conditions(system, name, num, aug, where)
        intervals = {phase.name: phase.interval for phase in system.phases}
        ours, theirs = [], []
        for _ in range(rounds):
            if peer is not None:
                theirs.append(run_peer(peer, specs[precision] | {"measure": "step", "repeats": repeats}))
            ours.append(measure(conditions, repeats))
        rows[f"{mode} {precision}"] = merge(ours, num, intervals)
        show(f"{mode} {precision}", rows[f"{mode} {precision}"], intervals)
        if peer is not None:
            rows[f"peer {precision}"] = merge(theirs, num, intervals)
            ratio = rows[f"peer {precision}"]["step_sec"] / rows[f"{mode} {precision}"]["step_sec"]
            rows[f"{mode} {precision}"]["times_faster_than_peer"] = ratio
            show(f"peer {precision}", rows[f"peer {precision}"], intervals)
            click.echo(f"{mode} {precision}: {ratio:.2f} times faster than the peer")
    if out is not None:
        facts = machine(where) | {"network": name, "batch": num, "cond": cond, "aug": aug, "graphs": graphs}
        write_json(out, facts | {"rows": rows})


def show(title: str, row: dict[str, Any], intervals: dict[str, int]) -> None:
    phases = "  ".join(f"{name} {row['sec'][name]:.4g} s" for name in intervals)
    memory = f"{row['peak_mib']:.0f} MiB"
    click.echo(f"{title:<12} {phases}  step {row['step_sec']:.4g} s  {row['images_per_sec']:.4g} images/s  {memory}")


if __name__ == "__main__":
    main()
