"""Metrics of the snapshots of a run, taken while it trains."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from metrics.metric_names import parse_metrics
from metrics.records import append_line
from stylegan2_icgan.evaluation.options import Flags
from stylegan2_icgan.evaluation.snapshots import SnapshotMetrics
from stylegan2_icgan.options import TrainingOptions
from torch_utils.command_line import UserError, nearest
from torch_utils.distributed import first
from training.checkpoint import Recipe
from training.dataset import ImageFolderDataset
from training.system import System


def make_measure(
    options: TrainingOptions, recipe: Recipe, system: System, dataset: ImageFolderDataset, device: torch.device
) -> Callable[[Path], Mapping[str, float]] | None:
    """What measures a snapshot against the training data as calc_metrics.py would, and appends to `metric-*.jsonl`.

    All processes call it. None where no metrics are wanted.

    Raises:
        UserError: a metric that these data, this model or this machine can't have; before anything is trained.
    """
    loop = options.loop
    if loop.metrics is None:
        return None
    _check_best(loop.keep_best, loop.metrics)
    flags = Flags(
        detector=loop.metrics_detector or Flags.detector,
        detector_weights=Path(loop.metrics_weights) if loop.metrics_weights is not None else None,
        instances="data" if options.wants_instances else None,
        workers=0,
    )
    try:
        metrics = SnapshotMetrics(loop.metrics, dataset, device, flags)
        metrics.check(recipe, has_w=hasattr(system.networks["G"], "mapping"))
    except UserError as error:
        line = str(error).replace("--detector-weights", "--metrics-weights").replace("--detector", "--metrics-detector")
        line = line.replace("give it with --lpips-weights=FILE", "measure this later: calc_metrics.py --lpips-weights")
        raise UserError(f"--metrics={loop.metrics}: {line.removeprefix(f'--metrics={loop.metrics}: ')}") from None

    def measure(snapshot: Path) -> Mapping[str, float]:
        lines = metrics(snapshot)

        def write() -> None:
            for line in lines:
                append_line(snapshot.parent / f"metric-{line['metric']}.jsonl", line)

        first(write)  # a full disk is an error in all processes, or they would go on with different things
        return {name: value for line in lines for name, value in line["results"].items()}

    return measure


def _check_best(wanted: str | None, metrics: str) -> None:
    """
    Raises:
        UserError: what should say which snapshot is best will never be measured.
    """
    names = [name for metric in parse_metrics(metrics) for name in dict.fromkeys([metric.name, *metric.results])]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"--keep-best={wanted} is not measured by --metrics={metrics}; there are {', '.join(names)}."
            f"{nearest(wanted, names)}"
        )
