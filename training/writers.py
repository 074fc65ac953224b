"""Where the statistics of a tick go besides `stats.jsonl`: TensorBoard if it is there, W&B if it is asked for."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torch_utils.training_stats import EDGES

Stats = Mapping[str, Mapping[str, Any]]


class Writer(Protocol):
    """Takes the statistics of ticks."""

    def tick(self, stats: Stats, cur_nimg: int) -> None: ...
    def close(self) -> None: ...


def writers(run: Path, wandb_project: str | None) -> list[Writer]:
    """Seconds to import: only once a run really ticks."""
    made: list[Writer] = []
    with contextlib.suppress(ImportError):
        made.append(TensorBoard(run))
    if wandb_project is not None:
        made.append(WeightsAndBiases(run, wandb_project))
    return made


class TensorBoard:
    """An events file in the run folder: means over thousands of images, and histograms of logits."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run)

    def tick(self, stats: Stats, cur_nimg: int) -> None:
        for name, of in stats.items():
            self._writer.add_scalar(name, of["mean"], global_step=cur_nimg // 1000)
            if "histogram" in of:
                self._writer.add_histogram_raw(
                    f"{name} (histogram)",
                    min=EDGES[0],
                    max=EDGES[-1],
                    num=of["num"],
                    sum=of["num"] * of["mean"],
                    sum_squares=of["num"] * (of["std"] ** 2 + of["mean"] ** 2),
                    bucket_limits=EDGES[1:],
                    bucket_counts=of["histogram"],
                    global_step=cur_nimg // 1000,
                )

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project, that of the same name when the run folder is continued.

    What the client does without a network, and where its files are, is set by its own WANDB_MODE and WANDB_DIR.
    """

    def __init__(self, run: Path, project: str) -> None:
        import wandb

        self._wandb = wandb
        identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(project=project, name=run.name, id=identity, resume="allow")

    def tick(self, stats: Stats, cur_nimg: int) -> None:
        values: dict[str, Any] = {name: of["mean"] for name, of in stats.items()}
        for name, of in stats.items():
            if "histogram" in of:
                drawn = (np.array(of["histogram"]), np.array(EDGES))
                values[f"{name} (histogram)"] = self._wandb.Histogram(np_histogram=drawn)
        self._run.log(values, step=cur_nimg)

    def close(self) -> None:
        self._run.finish()
