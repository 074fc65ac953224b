"""Files that can't be read any more in the midst of a run: noted, replaced, and too many of them end it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from torch_utils.command_line import UserError
from torch_utils.distributed import gather
from torch_utils.files import atomic_write

FILE = "bad-images.json"  # in the folder of a run: name -> CRC-32 of what it was


class BadImages:
    """Which images could not be read; loader processes forked from this one share what they note.

    Args:
        count: images of the data set.
        limit: so many are put up with, of all processes together.
        before: those that were noted before the run was interrupted.
    """

    def __init__(self, count: int, limit: int, before: Iterable[int] = ()) -> None:
        self._bad = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self._bad[list(before)] = 1
        self.limit = limit

    def note(self, i: int, error: UserError) -> None:
        """
        Raises:
            UserError: `error`, when it is one too many.
        """
        self._bad[i] = 1
        if len(self) > self.limit:
            raise UserError(f"{error}; more than --bad-images={self.limit} are bad by now") from None

    def merge(self) -> None:
        """Note what the other processes have noted, too; all of them call this.

        Raises:
            UserError: together they are too many.
        """
        for noted in gather(self.list(), brisk=True):
            self._bad[noted] = 1
        if len(self) > self.limit:
            raise UserError(
                f"{len(self)} images can't be read any more, of all processes: more than --bad-images={self.limit}; "
                "restore them, or give a larger number"
            )

    def __len__(self) -> int:
        return int(self._bad.sum())

    def __contains__(self, i: int) -> bool:
        return bool(self._bad[i])

    def list(self) -> list[int]:
        """Their indices, in ascending order."""
        return self._bad.nonzero().flatten().tolist()


def remember(run: Path, found: Mapping[str, int]) -> None:
    """Write down what a run that goes on has to know: which images its data had, and what they were.

    Args:
        run: the folder of the run.
        found: name -> CRC-32 of the bytes the file had.
    """
    if found and found != remembered(run):
        with atomic_write(run / FILE) as file:
            file.write((json.dumps(dict(found), indent=1) + "\n").encode())


def remembered(run: Path) -> dict[str, int]:
    """What `remember` wrote; {} when nothing was.

    Raises:
        UserError: the file is damaged.
    """
    path = run / FILE
    if not path.exists():
        return {}
    try:
        return {str(name): int(crc) for name, crc in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error}); restore it, or the images it names, and delete it") from None
