"""What a search shows while it runs, and leaves for a film."""

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from training.image_grid import sheet
from training.sampling import to_uint8

Say = Callable[[str], None]
LINES, FRAMES = 10, 100  # of progress; of a film


def marks(steps: int, count: int) -> set[int]:
    """0, `steps` and numbers between them at even distances, `count` + 1 in all where there are so many."""
    return {round(steps * i / count) for i in range(count + 1)}


class Watch:
    """Is told of a search: says how far it has come, and keeps where it began, and the frames of a film.

    Args:
        steps: of the search.
        targets: uint8 [N, C, R, R].
        film: whether to keep frames.
        say: is given lines for a person.
    """

    def __init__(self, steps: int, targets: Tensor, film: bool, say: Say) -> None:
        self.steps, self.targets, self.say = steps, targets, say
        self.line_at = marks(steps, LINES)
        self.frame_at = marks(steps, FRAMES) if film else set()
        self.start: tuple[Tensor, list[float]] | None = None  # images uint8 [N, C, R, R] and distances
        self.frames: list[Tensor] = []  # uint8 [C, height, width]: each target beside what the search has of it
        self.began = time.monotonic()

    @property
    def at(self) -> set[int]:
        """Numbers of steps done at which it wants to be told."""
        return self.line_at | self.frame_at

    def __call__(self, step: int, images: Tensor, distances: Tensor) -> None:
        """Is told of images [N, C, R, R] in [-1, 1] and distances [N] after so many steps."""
        pixels, values = to_uint8(images).cpu(), distances.tolist()
        if self.start is None:
            self.start = pixels, values
        if step in self.frame_at:
            self.frames.append(sheet(pixels.unsqueeze(1), self.targets.unsqueeze(1)))
        if step in self.line_at:
            self.say(progress_line(step, self.steps, values, time.monotonic() - self.began))


def progress_line(step: int, steps: int, distances: Sequence[float], elapsed_sec: float) -> str:
    """Of several targets the mean distance and the largest."""
    largest = f", largest {max(distances):.4f}" if len(distances) > 1 else ""
    return f"  {step:>6}/{steps}  distance {sum(distances) / len(distances):.4f}{largest}  {elapsed_sec:.0f} s"
