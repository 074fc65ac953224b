"""What a run says while it works: a bar on a terminal, plain lines in a pipe, everything in log.txt."""

import contextlib
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import rich.console
import rich.progress
import torch

from torch_utils.command_line import UserError
from torch_utils.distributed import Departed, rank
from torch_utils.files import atomic_write, format_time
from training.advice import Advice
from training.bad_images import remember
from training.image_source import shown
from training.writers import Stats, Writer, writers


class Progress:
    """Bar, log file and `stats.jsonl` of one run, and what else its statistics are sent to.

    Args:
        run: the run folder; files in it are appended to.
        total_kimg: where the bar ends.
        cur_nimg: where the run stands: lines of `stats.jsonl` beyond it (written by a run killed before its next state)
            are dropped, so that none is there twice after a resume.
        wandb_project: sent to Weights & Biases, too; None or '': not.

    Of several processes only the first one speaks and writes; when it is gone, another says in the log why a run ended.
    """

    def __init__(self, run: Path, total_kimg: float, cur_nimg: int, wandb_project: str | None = None) -> None:
        self.run, self._total_kimg, self._silent = run, total_kimg, rank() > 0
        self._console = rich.console.Console(highlight=False, soft_wrap=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.completed:.1f}/{task.total:g} kimg"),
            rich.progress.BarColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=self._silent or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total_kimg, completed=cur_nimg / 1000)
        if not self._silent:
            _drop_later_lines(run / "stats.jsonl", cur_nimg)
        self._writers: list[Writer] | None = None
        self._wandb_project = wandb_project
        self._bad_images: set[str] = set()
        self._advice = Advice()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        last = isinstance(error, Departed) and rank() == error.last
        if isinstance(error, UserError | OSError) and (last or not self._silent):
            with contextlib.suppress(OSError):  # of a full disk
                self._log(f"Ended by an error: {error}")
        for writer in self._writers or ():
            writer.close()

    def say(self, line: str) -> None:
        """One line on the screen and in log.txt."""
        if self._silent:
            return
        self._console.print(line, markup=False)
        self._log(line)

    def _log(self, line: str) -> None:
        with (self.run / "log.txt").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def say_bad_images(self, found: Mapping[str, int]) -> None:
        """Name images that can't be read any more, each once, and write them down: name -> CRC-32."""
        for name in found:
            if name not in self._bad_images:
                self.say(f"{shown(name)} can't be read any more; another image stands in for it")
        self._bad_images.update(found)
        if not self._silent:
            remember(self.run, found)

    def advance(self, cur_nimg: int) -> None:
        self._bar.update(self._task, completed=cur_nimg / 1000)

    def tick(self, stats: Stats, cur_nimg: int) -> None:
        """Say what a tick was like: a line of `stats.jsonl`, and what the writers do."""
        if self._silent:
            return
        line = dict(stats) | {"timestamp": datetime.datetime.now(datetime.UTC).timestamp()}
        with (self.run / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._writers is None:
            self._writers = writers(self.run, cur_nimg, self._wandb_project, self.say)
        for writer in self._writers:
            writer.tick(stats, cur_nimg)
        for line in (tick_line(stats, self._total_kimg), *self._advice.lines(stats)):
            self.say(line)


def _drop_later_lines(path: Path, cur_nimg: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _line_kimg(line) * 1000 < cur_nimg + 0.5]  # means of processes are rounded
    if len(kept) < len(lines):
        with atomic_write(path) as file:
            file.write("".join(kept).encode())


def _line_kimg(line: str) -> float:
    """Where a line of stats.jsonl stands; a line cut short by a crash stands beyond everything."""
    try:
        return float(json.loads(line)["Progress/kimg"]["mean"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def tick_line(stats: Stats, total_kimg: float) -> str:
    """The figures of a tick worth a glance, and how long the rest of the run takes at this pace."""

    def mean(name: str) -> float:
        return stats[name]["mean"] if name in stats else float("nan")

    left_sec = (total_kimg - mean("Progress/kimg")) * mean("Timing/sec_per_kimg")
    return (
        f"tick {mean('Progress/tick'):<5g} kimg {mean('Progress/kimg'):<8.1f} "
        f"time {format_time(mean('Timing/total_sec')):<8} sec/kimg {mean('Timing/sec_per_kimg'):<7.2f} "
        f"img/s {mean('Timing/images_per_sec'):<7.1f} left {format_time(max(left_sec, 0)):<8} "
        f"memory {mean('Resources/memory_gb'):<5.2f} GB  "
        f"G {mean('Loss/G/loss'):<6.3f} D {mean('Loss/D/real') + mean('Loss/D/fake'):<6.3f} "
        f"D(real) {mean('Loss/scores/real'):+.2f} D(fake) {mean('Loss/scores/fake'):+.2f}"
        + (f" augment {mean('Progress/augment'):.3f}" if "Progress/augment" in stats else "")
    )


def memory_gb(device: torch.device) -> float:
    """Peak memory of the GPU since the last call, or resident memory of the process, in GiB."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return host_memory_gb()


def host_memory_gb() -> float:
    """Resident memory of the process, in GiB."""
    return float(psutil.Process().memory_info().rss) / 2**30
