"""Metrics of the snapshots of a run, taken while it trains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from metrics import inception, lpips
from metrics.metric_names import parse_metrics
from metrics.records import append_line
from stylegan2_icgan.evaluation.job import LPIPS_KINDS, pick_detector
from stylegan2_icgan.evaluation.options import Flags
from stylegan2_icgan.evaluation.snapshots import SnapshotMetrics
from stylegan2_icgan.extractors import timm_networks
from stylegan2_icgan.features import canonical_name
from stylegan2_icgan.options import TrainingOptions
from torch_utils.command_line import UserError, nearest
from torch_utils.distributed import first
from torch_utils.published import Download, HubFile
from training.checkpoint import Recipe
from training.config import LoopOptions
from training.dataset import ImageFolderDataset
from training.system import System

PUBLISHED = {"inception": inception.WEIGHTS, "vgg16": lpips.VGG16}  # of the detectors that have weights


def check_measure(loop: LoopOptions) -> None:
    """Refuse what `make_measure` would, as far as the options and this machine's caches tell; fetches nothing.

    Raises:
        UserError: a result that is not measured, a detector or weights that can't be had.
    """
    if loop.metrics is None:
        return
    _check_best(loop.keep_best, loop.metrics)
    flags, cpu = _flags(loop), torch.device("cpu")
    with _said_of_training(loop.metrics):
        if _answered_at_once(_published(flags)):
            pick_detector(flags, cpu, None)
        perceptual = any(metric.kind in LPIPS_KINDS for metric in parse_metrics(loop.metrics))
        if perceptual and _answered_at_once([lpips.VGG16, lpips.HEADS]):
            lpips.Lpips.load((), cpu)


def make_measure(
    options: TrainingOptions, recipe: Recipe, system: System, dataset: ImageFolderDataset, device: torch.device
) -> Callable[[Path], Mapping[str, float]] | None:
    """What measures a snapshot against the training data as calc_metrics.py would, and appends to `metric-*.jsonl`.

    All processes call it. None where no metrics are wanted.

    Args:
        options: `check_measure` has passed those of the loop.

    Raises:
        UserError: a metric that these data, this model or this machine can't have; before anything is trained.
    """
    loop = options.loop
    if loop.metrics is None:
        return None
    with _said_of_training(loop.metrics):
        metrics = SnapshotMetrics(loop.metrics, dataset, device, _flags(loop, options.wants_instances))
        metrics.check(recipe, has_w=hasattr(system.networks["G"], "mapping"))

    def measure(snapshot: Path) -> Mapping[str, float]:
        lines = metrics(snapshot)

        def write() -> None:
            for line in lines:
                append_line(snapshot.parent / f"metric-{line['metric']}.jsonl", line)

        first(write)  # a full disk is an error in all processes, or they would go on with different things
        return {name: value for line in lines for name, value in line["results"].items()}

    return measure


def _flags(loop: LoopOptions, of_instances: bool = False) -> Flags:
    """What calc_metrics.py would be told."""
    return Flags(
        detector=loop.metrics_detector or Flags.detector,
        detector_weights=Path(loop.metrics_weights) if loop.metrics_weights is not None else None,
        instances="data" if of_instances else None,
        workers=0,
    )


@contextmanager
def _said_of_training(metrics: str) -> Iterator[None]:
    """Errors name the flags of train.py in place of those of calc_metrics.py."""
    try:
        yield
    except UserError as error:
        line = str(error).replace("--detector-weights", "--metrics-weights").replace("--detector", "--metrics-detector")
        line = line.replace("give it with --lpips-weights=FILE", "measure this later: calc_metrics.py --lpips-weights")
        raise UserError(f"--metrics={metrics}: {line.removeprefix(f'--metrics={metrics}: ')}") from None


def _published(flags: Flags) -> Sequence[Download | HubFile]:
    """Where the weights of the detector are published; nothing where none are needed, or the user has them."""
    name = canonical_name(flags.detector)
    if flags.detector_weights is not None:
        return []
    if name.startswith(timm_networks.PREFIX):
        with suppress(UserError):  # who makes it says why there is none
            return [timm_networks.published(name)]
    return [PUBLISHED[name]] if name in PUBLISHED else []


def _answered_at_once(sources: Sequence[Download | HubFile]) -> bool:
    """Whether who asks for them gets all, or an error, and nothing is fetched."""
    return all(source.cached() is not None or source.unreachable() for source in sources)


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
