"""Which snapshots of a run stay, which of them is the best, and for how long none was better."""

from dataclasses import dataclass
from pathlib import Path

from metrics.metric_names import higher_is_better
from metrics.plot import read_curves
from training.run_folder import snapshot_of, snapshots_in


@dataclass(frozen=True)
class Best:
    """The best measurement of a run.

    Args:
        snapshot: file name.
        since: measurements after it.
    """

    metric: str
    value: float
    snapshot: str
    since: int


def best_of(run: Path, wanted: str | None) -> Best | None:
    """The best snapshot by a result in the run's `metric-*.jsonl`; of equal ones the first. None: nothing measured.

    Args:
        wanted: a result ('pr10k3_recall'), or a metric, of which the first result counts; None: whatever was measured.
    """
    curves = read_curves(run)
    fits = (name for name in sorted(curves) if wanted is None or name == wanted or name.startswith(f"{wanted}_"))
    metric = next(fits, None)
    if metric is None:
        return None
    curve = sorted(curves[metric].items())
    sign = -1 if higher_is_better(metric) else 1
    kimg, value = min(curve, key=lambda point: (sign * point[1], point[0]))
    return Best(metric, value, snapshot_of(run, kimg), sum(later > kimg for later, _ in curve))


def tidy(run: Path, last: int | None, every: float | None, best: Best | None) -> list[Path]:
    """Delete snapshots of a run but some. Sheets stay, they are small.

    Args:
        last: how many of the newest stay; None: all stay.
        every: those at multiples of so many kimg stay, too.
        best: stays, too.

    Returns:
        what was deleted.
    """
    if last is None:
        return []
    kept = {best.snapshot} if best is not None else set()
    doomed = []
    for path in snapshots_in(run)[:-last]:
        kimg, _, rest = path.stem.rpartition("-")[2].partition("_")
        if path.name not in kept and not (every and not rest and int(kimg) % every == 0):
            path.unlink()
            doomed.append(path)
    return doomed
