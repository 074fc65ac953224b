"""Measure how good generated images are: a snapshot, a folder or zip of images, or features, against a reference.

\b
    python calc_metrics.py --network=runs/.../network-snapshot-000036.pt --metrics=fid50k_full,pr50k3_full
    python calc_metrics.py --data=real.zip --fake=samples/ --metrics=fid10k_full,kid10k_full
    python calc_metrics.py --data=real.npy --fake=fake.npy --metrics=fid50k_full
    python calc_metrics.py --plot=runs/00000-digits-instance-tiny-batch16
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from metrics.metric_names import Metric, parse_metrics
from metrics.plot import plot_curves
from metrics.records import append_line, check_writable
from stylegan2_icgan.evaluation.images import DatasetImages, RealImages
from stylegan2_icgan.evaluation.job import Job, check_flags, open_side, training_data
from stylegan2_icgan.evaluation.options import Flags, Options
from stylegan2_icgan.models import load_model
from torch_utils import custom_ops
from torch_utils.command_line import Command, Ranges, UserError, Words, dataclass_options
from torch_utils.distributed import launched, own_device, rank, together
from torch_utils.launch import relaunch
from torch_utils.misc import keep_large_buffers, pick_device
from training.run_folder import snapshots_in


def prepare(flags: Flags, metrics: Sequence[Metric], device: torch.device) -> tuple[Job, list[Path]]:
    """What is to be done, and for which snapshots."""
    snapshots: list[Path] = []
    real = training = there = None
    wants_training = any("training" in metric.needs for metric in metrics)
    if flags.network is not None:
        snapshots = snapshots_in(flags.network) if flags.network.is_dir() else [flags.network]
        if not snapshots:
            raise UserError(
                f"--network={flags.network} is a folder without snapshots; expected a file or the folder of a run"
            )
        trained_on = None
        if flags.data is None or (wants_training and flags.train_data is None):
            recipe = load_model(snapshots[0], device).recipe
            trained_on = training_data(recipe)
        there = None if trained_on is None else DatasetImages(trained_on, flags.decoders)
        if flags.data is None and there is None and any("real" in metric.needs for metric in metrics):
            named = recipe.training_options.get("data", {}).get("data", "of which it knows no path")
            raise UserError(
                f"--network={snapshots[0]}: its training data ({named}) is not here; name a reference with --data=ZIP"
            )
    real = there if flags.data is None else open_side(flags.data, flags, "--data")
    if wants_training:
        opened = there if flags.train_data is None else open_side(flags.train_data, flags, "--train-data")
        training = opened if isinstance(opened, RealImages) else None
    for snapshot in snapshots or [None]:
        folder = folder_of_records(flags, snapshot)
        if folder is not None:
            check_writable(folder)
    return Job(flags, real, training, device), snapshots


def folder_of_records(flags: Flags, snapshot: Path | None) -> Path | None:
    """Where the lines go; None: only to the terminal."""
    return flags.out or (snapshot.parent if snapshot is not None else None)


def check_before_launch(flags: Flags) -> None:
    """Refuse in one process, and one line, what all of them would refuse."""
    if pick_device(flags.device).type == "cuda" and flags.gpus > torch.cuda.device_count():
        raise UserError(f"--gpus={flags.gpus}: there are {torch.cuda.device_count()} on this machine; expected no more")
    metrics = parse_metrics(flags.metrics)
    job, snapshots = prepare(flags, metrics, torch.device("cpu"))
    for snapshot in snapshots:
        model = load_model(snapshot, job.device)
        job.check(metrics, job.promise(model.recipe, bool(model.generator.w_dim)), network=True)
    if not snapshots:
        job.check(metrics, job.given(), network=False)


def run(flags: Flags) -> None:
    custom_ops.set_mode("auto")
    metrics = parse_metrics(flags.metrics)
    job, snapshots = prepare(flags, metrics, own_device(pick_device(flags.device)))
    for snapshot in snapshots or [None]:
        records = job.measure(metrics, snapshot)
        if rank():
            continue
        folder = folder_of_records(flags, snapshot)
        for line in records:
            # Shown before it is written: what somebody has seen is not lost to a full disk.
            click.echo(json.dumps(line) if flags.json else table_rows(line, snapshot))
            if folder is not None:
                append_line(folder / f"metric-{line['metric']}.jsonl", line)


def table_rows(line: dict[str, Any], snapshot: Path | None) -> str:
    """Lines for a person: value, error, counts."""
    rows = []
    for name, value in line["results"].items():
        error = line["standard_error"].get(name)
        spread = "" if error is None else f" ± {error:.3g}" if isinstance(error, float) else f" ± {error}"
        shown_value = f"{value:.5g}" if isinstance(value, float) else str(value)
        counts = f"{line['num_real']:,} real, {line['num_fake']:,} generated, {line['detector']['name']}"
        rows.append(f"{name:<32}{shown_value:>12}{spread:<12}  {counts}{f', {snapshot.name}' if snapshot else ''}")
    return "\n".join(rows + [f"  note: {note}" for note in line["notes"]])


@click.command(cls=Command, help=__doc__)
@click.option("--seeds", type=Ranges(), default="0", show_default=True, help="Repeats; several give an interval.")
@click.option("--lpips-weights", cls=Words, type=Path, help="Local VGG16 and LPIPS heads.", metavar="FILE ...")
@dataclass_options(Options)
def main(**given: Any) -> int:
    given["seeds"] = tuple(given["seeds"])
    flags = Flags(**{name: value for name, value in given.items() if value is not None})
    if flags.plot is not None:
        click.echo(f"{plot_curves(flags.plot)} drawn")
        return 0
    parse_metrics(flags.metrics)
    check_flags(flags)
    if flags.gpus > 1 and launched()[1] == 1:
        check_before_launch(flags)
        return relaunch(Path(__file__), flags.gpus)
    keep_large_buffers()
    with together():
        run(flags)
    return 0


if __name__ == "__main__":
    sys.exit(main())
