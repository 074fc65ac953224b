"""When a run reports, and when it leaves a snapshot."""

from dataclasses import dataclass

from training.config import LoopOptions


@dataclass(frozen=True)
class Ticks:
    """Moments are counted in images seen, at the end of a step.

    Args:
        nimg: images a tick.
        snap: ticks a snapshot.
        batch: images a step.
    """

    nimg: int
    snap: int
    batch: int

    @classmethod
    def of(cls, loop: LoopOptions) -> "Ticks":
        return cls(max(int(loop.tick * 1000), 1), loop.snap, loop.batch)

    def number(self, cur_nimg: int) -> int:
        """Ticks that have ended by now."""
        return cur_nimg // self.nimg

    def place(self, cur_nimg: int) -> float:
        """What the line of a step is numbered with: the ticks that have ended; between two, a part of one, too."""
        return self.number(cur_nimg) if self.ended(cur_nimg) else cur_nimg / self.nimg

    def ended(self, cur_nimg: int) -> bool:
        """Whether the last step ended a tick."""
        return self.number(cur_nimg) > self.number(cur_nimg - self.batch)

    def has_snapshot(self, cur_nimg: int) -> bool:
        """Whether the last step ended a tick that leaves a snapshot, however often the run was interrupted."""
        return self.ended(cur_nimg) and self.number(cur_nimg) % self.snap == 0

    def snapshots_before(self, cur_nimg: int) -> int:
        """How many ticks before this moment have left one."""
        return self.number(cur_nimg) // self.snap - self.has_snapshot(cur_nimg)
