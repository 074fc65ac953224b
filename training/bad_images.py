"""Files that can't be read any more in the midst of a run: noted, replaced, and too many of them end it."""

import torch

from torch_utils.command_line import UserError


class BadImages:
    """Which images could not be read; loader processes forked from this one share what they note.

    Args:
        count: images of the data set.
        limit: so many are put up with.
    """

    def __init__(self, count: int, limit: int) -> None:
        self._bad = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self.limit = limit

    def note(self, i: int, error: UserError) -> None:
        """
        Raises:
            UserError: `error`, when it is one too many.
        """
        self._bad[i] = 1
        if len(self) > self.limit:
            raise UserError(f"{error}; more than --bad-images={self.limit} are bad by now") from None

    def __len__(self) -> int:
        return int(self._bad.sum())

    def __contains__(self, i: int) -> bool:
        return bool(self._bad[i])

    def list(self) -> list[int]:
        """Their indices, in ascending order."""
        return self._bad.nonzero().flatten().tolist()
