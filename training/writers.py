"""Where the statistics of a tick go besides `stats.jsonl`: TensorBoard if it is there, W&B if it is asked for."""

import contextlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torch_utils.files import atomic_write
from torch_utils.training_stats import EDGES

Stats = Mapping[str, Mapping[str, Any]]
IDENTITY = "wandb-id.txt"  # in the run folder


class Writer(Protocol):
    """Takes the statistics of ticks."""

    def tick(self, stats: Stats, cur_nimg: int) -> None: ...
    def close(self) -> None: ...


def writers(run: Path, first_nimg: int, wandb_project: str | None, say: Callable[[str], None]) -> list[Writer]:
    """Seconds to import: only once a run really ticks. A service that can't be had ends no run; `say` says so."""
    made: list[Writer] = []
    with contextlib.suppress(ImportError):
        made.append(TensorBoard(run, first_nimg))
    if wandb_project:
        try:
            made.append(WeightsAndBiases(run, wandb_project))
        except Exception as error:  # no key, no network: the client has a dozen kinds
            reason = " ".join(str(error).split())
            say(f"--wandb={wandb_project} failed ({type(error).__name__}: {reason}); training goes on without it")
    return made


class TensorBoard:
    """An events file in the run folder: means over thousands of images, and histograms of logits.

    From `first_nimg` on it takes the place of those of a run that was killed later than its state.
    """

    def __init__(self, run: Path, first_nimg: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run, purge_step=first_nimg // 1000)

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
    """A run of the project, the same one when the run folder is continued: what it is called there lies in the folder.

    What the client does without a network, and where its files are, is set by its own WANDB_MODE and WANDB_DIR.
    """

    def __init__(self, run: Path, project: str) -> None:
        import wandb

        self._wandb = wandb
        if not (run / IDENTITY).is_file():
            with atomic_write(run / IDENTITY) as file:
                file.write(uuid.uuid4().hex.encode())
        identity = (run / IDENTITY).read_text(encoding="utf-8")
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
