"""What a network is conditioned on, and what a data set yields."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch


class Sample(NamedTuple):
    """One draw from a data set, or a batch of them. All four fields are always there."""

    image: torch.Tensor  # uint8 [C, H, W] or [N, C, H, W], 0..255: what the discriminator sees as real
    c: torch.Tensor  # float32 [c_dim] or [N, c_dim]: label of `image`; width 0 without labels
    h: torch.Tensor  # float32 [h_dim] or [N, h_dim]: feature of the conditioning instance; width 0 without instances
    index: torch.Tensor  # type: ignore[assignment]  # int64 [] or [N]: which image of the data set `image` is


@dataclass(frozen=True, eq=False)
class Condition:
    """Rows of conditions: labels `c` and instance features `h` that belong together, row by row.

    A frozen dataclass and not a tuple: `condition[:4]` is four rows, never two fields, and it can't be unpacked into a
    `c` and an `h` that are then shuffled apart. An absent condition has width 0, never None.

    Args:
        c: float32 [N, c_dim], labels (one-hot); c_dim may be 0.
        h: float32 [N, h_dim], L2-normalised instance features; h_dim may be 0.

    Raises:
        ValueError: a field is not a matrix, or the two have different numbers of rows.
    """

    c: torch.Tensor
    h: torch.Tensor

    def __post_init__(self) -> None:
        if self.c.ndim != 2 or self.h.ndim != 2:
            raise ValueError(f"c and h must be matrices [N, width]; given {list(self.c.shape)}, {list(self.h.shape)}")
        if len(self.c) != len(self.h):
            raise ValueError(f"c has {len(self.c)} rows, h has {len(self.h)}: rows belong together, one each")

    def __len__(self) -> int:
        return len(self.c)

    def __getitem__(self, rows: slice | Sequence[int] | torch.Tensor) -> "Condition":
        if isinstance(rows, int):
            raise TypeError(f"condition[{rows}] would drop the batch axis; write condition[{rows}:{rows + 1}]")
        return Condition(self.c[rows], self.h[rows])

    def __iter__(self) -> NoReturn:  # Python would fall back to __getitem__(0), (1), ... without it
        raise TypeError("a Condition is not iterable; use .c, .h or condition[rows]")

    def split(self, size: int) -> list["Condition"]:
        """Consecutive pieces of `size` rows, the last one possibly shorter."""
        return [Condition(c, h) for c, h in zip(self.c.split(size), self.h.split(size), strict=True)]

    def to(self, device: torch.device | str) -> "Condition":
        return self._each(lambda field: field.to(device))

    def repeat_interleave(self, times: int) -> "Condition":
        """Every row `times` times in a row: [a, b] -> [a, a, b, b]."""
        return self._each(lambda field: field.repeat_interleave(times, dim=0))

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Condition":
        return Condition(function(self.c), function(self.h))

    @staticmethod
    def empty(rows: int) -> "Condition":
        """The condition of an unconditional model: `rows` rows of width 0."""
        return Condition(torch.zeros(rows, 0), torch.zeros(rows, 0))


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Conditions a snapshot carries, so that it can be used without its data set; and how to make more of them.

    Args:
        condition: one row per exemplar; 0 rows for an unconditional model.
        images: uint8 [rows, C, H, W], the image each row stands for (a thumbnail of at most 64 px); or no rows.
        names: file name of each exemplar in the data set it came from.
        extractor: JSON description of how a feature is made of an image; {} where there are no instances.
        extractor_state: tensors the extractor needs beside published weights (e.g. a fitted projection).
    """

    condition: Condition
    images: torch.Tensor
    names: list[str]
    extractor: dict[str, Any] = field(default_factory=dict)
    extractor_state: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.condition)


def thumbnails(images: torch.Tensor, largest: int = 64) -> torch.Tensor:
    """uint8 [N, C, H, W] images averaged down to at most `largest` pixels a side."""
    if images.shape[-1] <= largest:
        return images
    small = torch.nn.functional.interpolate(images.float(), size=(largest, largest), mode="area")
    return small.round().clamp(0, 255).to(torch.uint8)
