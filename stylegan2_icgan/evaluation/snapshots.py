"""Metrics of snapshots in the midst of a training: what calc_metrics.py would say of them, and nothing else changed."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from metrics.metric_names import parse_metrics
from stylegan2_icgan.evaluation.images import DatasetImages
from stylegan2_icgan.evaluation.job import Job
from stylegan2_icgan.evaluation.options import Flags
from stylegan2_icgan.models import Model
from training.checkpoint import Recipe
from training.dataset import ImageFolderDataset


class SnapshotMetrics:
    """Measures one snapshot after another against the data they are trained on; writes nothing but the cache.

    Detector and features of the data are kept from call to call. Random state is as it was before. Under torchrun all
    processes make one and call it together; each gets the same lines.

    Args:
        metrics: names, as `--metrics`.
        dataset: what is trained on; decoded images that it keeps are used.
        device: of this process.
        flags: detector and its weights, batch of the generator, and whatever else calc_metrics.py could be told.
        quiet: without lines about progress.

    Raises:
        UserError: an unknown metric.
    """

    def __init__(
        self,
        metrics: str,
        dataset: ImageFolderDataset,
        device: torch.device,
        flags: Flags | None = None,
        quiet: bool = True,
    ) -> None:
        self.metrics = parse_metrics(metrics)
        flags = Flags() if flags is None else flags
        real = DatasetImages(dataset, flags.decoders)
        self._job = Job(flags, real, real, device, quiet)

    def check(self, recipe: Recipe, has_w: bool) -> None:
        """Refuse, before the first step, what could not be measured after it; the detector's weights are read.

        Args:
            recipe: of the snapshots to come.
            has_w: whether the generator maps z to w.

        Raises:
            UserError: labels, instances, weights or a package are missing, or too few images.
        """
        with _random_state_kept(self._job.device):
            self._job.check(self.metrics, self._job.promise(recipe, has_w), network=True)

    def __call__(self, snapshot: Path | Model) -> list[dict[str, Any]]:
        """A record for each metric: the lines of `metric-<name>.jsonl`.

        Raises:
            UserError: features that are no numbers, or the snapshot is none.
        """
        with _random_state_kept(self._job.device):
            return self._job.measure(self.metrics, snapshot)


def _random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    devices = [device.index or 0] if device.type == "cuda" else []
    return torch.random.fork_rng(devices)
