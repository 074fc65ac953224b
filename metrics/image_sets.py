"""What metrics ask of a set of images, generated or real; and their features, by one process or many."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.detectors import Detector
from metrics.feature_stats import check_finite
from torch_utils.command_line import UserError
from torch_utils.distributed import gather, rank, world_size


class ImageSet:
    """Images by number. A set of files has `num` of them; a generator has no end (None).

    Image `i` is the same whenever it is asked for, alone or among others of its batch; so are its class and instance,
    which are known without making the image.

    Args:
        description: JSON for records; a `content` in it is a hash that changes when any image does.
        num: how many there are; None: no end.
    """

    def __init__(self, description: dict[str, Any], num: int | None) -> None:
        self.description, self.num = description, num

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """The images of each array of numbers: uint8 [N, C, H, W], or float [N, D] of ready-made features."""
        raise NotImplementedError

    def classes(self, ids: np.ndarray) -> np.ndarray | None:
        """int64 [N] class of each; None where images have none."""
        return None

    def seen(self, ids: np.ndarray) -> np.ndarray | None:
        """bool [N], whether the combination of classes in each is among the training images; None: it isn't known."""
        return None

    def instances(self, ids: np.ndarray) -> np.ndarray | None:
        """int64 [N], which reference image each is conditioned on; None where that isn't so."""
        return None

    @property
    def has_paths(self) -> bool:
        """Whether `path_pairs` can be asked for."""
        return False

    def copies(self, count: int) -> "ImageSet | None":
        """The set in which numbers `count * i` to `count * i + count - 1` share condition `i`; None: can't be made."""
        return None

    def path_pairs(self, ids: np.ndarray, space: str, full: bool, epsilon: float) -> tuple[Tensor, Tensor]:
        """Images of latents that lie epsilon apart, float [N, C, H, W], 0..255, not rounded.

        Args:
            space: 'z' (along great circles) or 'w' (along lines).
            full: anywhere between two latents; False: at the first.
        """
        raise NotImplementedError


class FeatureRows(ImageSet):
    """Ready-made features, float [N, D], with classes and instances where they are known."""

    def __init__(
        self,
        rows: np.ndarray,
        description: dict[str, Any],
        class_ids: np.ndarray | None = None,
        instance_ids: np.ndarray | None = None,
        seen_mask: np.ndarray | None = None,
    ) -> None:
        super().__init__(description, len(rows))
        self._rows, self._classes, self._instances, self._seen = rows, class_ids, instance_ids, seen_mask

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[Tensor]:
        return (torch.from_numpy(np.array(self._rows[some], dtype=np.float32)) for some in ids)

    def classes(self, ids: np.ndarray) -> np.ndarray | None:
        return None if self._classes is None else self._classes[ids]

    def instances(self, ids: np.ndarray) -> np.ndarray | None:
        return None if self._instances is None else self._instances[ids]

    def seen(self, ids: np.ndarray) -> np.ndarray | None:
        return None if self._seen is None else self._seen[ids]


def extract(
    images: ImageSet,
    detector: Detector,
    ids: np.ndarray,
    progress: Callable[[int], None] = lambda done: None,
    logits: bool = False,
) -> Iterator[Tensor]:
    """Features of the images, in their order, float32 [B, D] on the CPU; every process gets all of them.

    What is in a batch does not depend on how many processes there are, so neither does a feature.

    Raises:
        UserError: the detector gives values that are not finite.
    """
    pieces = [ids[start : start + detector.batch] for start in range(0, len(ids), detector.batch)]
    run = detector.logits if logits else detector.features
    done = 0

    def features_of(mine: Sequence[int]) -> Iterator[Tensor]:
        return (run(batch).float().cpu() for batch in images.batches([pieces[number] for number in mine]))

    for rows in shared(len(pieces), features_of):
        try:
            check_finite(rows)
        except ValueError as error:
            where = f"--detector={detector.description['name']}: from image {int(ids[done])} on"
            raise UserError(f"{where} {error}; mend or remove that image") from None
        done += len(rows)
        progress(done)
        yield rows


def shared(count: int, make: Callable[[Sequence[int]], Iterator[Tensor]]) -> Iterator[Tensor]:
    """Results 0 to count - 1 in their order, on every process; result b is made by process b mod world_size.

    An error in one process is an error in all: none is left waiting for the others.

    Args:
        make: the numbers of some results, ascending -> these results, on the CPU.

    Raises:
        UserError, RuntimeError: what a process has to say.
    """
    if world_size() == 1:
        yield from make(range(count))
        return
    stream = make(range(rank(), count, world_size()))
    for start in range(0, count, world_size()):
        own: Tensor | _Failure | None = None
        failed: Exception | None = None
        if start + rank() < count:
            try:
                own = next(stream)
            except Exception as error:  # whatever it is, the others can't go on either
                own, failed = _Failure(str(error), isinstance(error, UserError)), error
        for number, result in enumerate(gather(own)):
            if isinstance(result, _Failure):
                if failed is not None and number == rank():
                    raise failed
                raise UserError(result.message) if result.mistake else RuntimeError(f"rank {number}: {result.message}")
            if result is not None:
                yield result


class _Failure(NamedTuple):
    """An error on its way to the other processes."""

    message: str
    mistake: bool  # of the user
