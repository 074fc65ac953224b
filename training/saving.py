"""What a run leaves behind at a snapshot: a sheet, the snapshot, its measurements, and a state for the next start."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metrics.plot import read_curves
from torch_utils import training_stats
from torch_utils.distributed import barrier, first, rank
from training.checkpoint import Recipe, Snapshot, check_finite, save_snapshot, save_state
from training.condition import Exemplars
from training.config import LoopOptions
from training.dataset import SampleSource
from training.ema import Ema
from training.keeping import Best, best_of, tidy
from training.progress import Progress
from training.run_folder import snapshot_name
from training.system import Sheets, Stateful, System

Measure = Callable[[Path], Mapping[str, float]]  # snapshot -> results; lines of metric-*.jsonl beside it


class Saver:
    """Writes, as the first of several processes; all of them call every method.

    Args:
        measure: takes the metrics of a snapshot, with all processes; None: none are wanted.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        system: System,
        ema: Ema,
        source: SampleSource,
        num_exemplars: int,
        loop: LoopOptions,
        measure: Measure | None,
    ) -> None:
        self.run, self.recipe, self.system, self.ema, self.loop = run, recipe, system, ema, loop
        self._source, self._num_exemplars, self._measure = source, num_exemplars, measure
        self._exemplars: Exemplars | None = None
        self._sheets: Sheets | None = None

    def first_sheets(self) -> None:
        """Real images, and what an untrained generator makes."""
        if rank() == 0:
            self._sheets = self.system.preview(self._source, self.system.networks["G"].z_dim)
            self._sheets.save_reals(self.run / "reals.png")
            self._sheets.save_fakes(self.run / "fakes000000.png", self.ema.average)
        barrier(brisk=True)

    def sheet(self, cur_nimg: int, report: bool) -> None:
        """Draw what the average generator makes.

        Args:
            report: what it says of the generator; not when a run is interrupted, whose statistics would have more.
        """
        if rank() == 0:
            networks = {name: network.state_dict() for name, network in self.system.networks.items()}
            check_finite(networks | {"G_ema": self.ema.state_dict()})
            if self._sheets is None:
                self._sheets = self.system.preview(self._source, self.system.networks["G"].z_dim)
            number = self._path(cur_nimg).stem.rpartition("-")[2]
            figures = self._sheets.save_fakes(self.run / f"fakes{number}.png", self.ema.average)
            for name, value in figures.items() if report else ():
                training_stats.report(name, value)
        barrier(brisk=True)

    def snapshot(self, cur_nimg: int) -> None:
        """Write the snapshot."""
        if rank() == 0:
            if self._exemplars is None:
                self._exemplars = self._source.exemplars(self._num_exemplars)
            networks = {name: network.state_dict() for name, network in self.system.networks.items()}
            networks["G_ema"] = self.ema.state_dict()
            save_snapshot(self._path(cur_nimg), Snapshot(self.recipe, networks, self._exemplars, cur_nimg))
        barrier(brisk=True)

    def state(self, members: Mapping[str, Stateful], at: dict[str, Any]) -> None:
        """Write a training state, of weights that are finite."""
        if rank() == 0:
            check_finite({name: members[name].state_dict() for name in (*self.system.networks, "G_ema")})
            save_state(self.run / f"training-state-{at['cur_nimg'] // 1000:06d}.pt", members, at)
        barrier(brisk=True)

    def measure(self, number: int, cur_nimg: int, progress: Progress) -> str | None:
        """Measure the newest snapshot when that is due, the first one never. A metric that fails ends nothing.

        Args:
            number: how many regular snapshots a run has written before this one, however often it was interrupted.

        Returns:
            'no improvement', when that is why the run should end.
        """
        if self._measure is None or number == 0 or number % self.loop.metrics_every:
            return None
        path = self._path(cur_nimg)
        try:
            results = self._measure(path)
        except Exception as error:  # whatever a metric does wrong, the training is worth more
            progress.say(f"metrics of {path.name} failed ({type(error).__name__}: {error}); training goes on")
            return None
        return first(lambda: self._note(path, results, progress))

    def measured(self, cur_nimg: int) -> bool:
        """Whether there are results of this moment, which a killed process may have owed."""
        return first(lambda: any(cur_nimg / 1000 in curve for curve in read_curves(self.run).values()))

    def tidy(self) -> None:
        """Delete snapshots that need not stay."""
        if rank() == 0:
            tidy(self.run, self.loop.keep_last, self.loop.keep_every, self._best())

    def _path(self, cur_nimg: int) -> Path:
        return self.run / snapshot_name(cur_nimg, self.loop.batch)

    def _best(self) -> Best | None:
        measured = self.loop.metrics.split(",")[0].strip() if self.loop.metrics else None  # taken back on --resume
        return best_of(self.run, self.loop.keep_best or measured)

    def _note(self, path: Path, results: Mapping[str, float], progress: Progress) -> str | None:
        progress.say(", ".join(f"{name} {value:.5g}" for name, value in results.items()) + f" ({path.name})")
        best = self._best()
        if best is None or best.since == 0:
            return None
        progress.say(f"best so far: {best.metric} {best.value:.5g} ({best.snapshot})")
        return "no improvement" if self.loop.patience is not None and best.since >= self.loop.patience else None
