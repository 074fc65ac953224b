"""Pairs of images: two data sets, aligned by name."""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from torch_utils.command_line import UserError
from training.condition import Condition, Exemplars, Sample
from training.dataset import Draws, ImageFolderDataset, SampleSource
from training.image_source import first_of, open_source, shown
from training.randomness import uniform

_FLIP = 53  # stream of randomness


class PairedSource(SampleSource):
    """Pairs as the trainer wants them: `Sample.image` is both images on the channel axis, A first, [2 C, H, W].

    `num_channels` is that of one domain, and of a translated image; where only one domain has colour, the grey of the
    other is repeated. The condition of an image is the other image, so that c and h have width 0.

    Args:
        a, b: the images of the domains.
        partner: int64 [len(a)], which image of `b` belongs to each of `a`.
        mirror: flip both images of a pair, with probability 1/2.
    """

    c_dim = h_dim = 0

    def __init__(self, a: ImageFolderDataset, b: ImageFolderDataset, partner: np.ndarray, mirror: bool = False) -> None:
        self.a, self.b, self.partner, self.mirror = a, b, partner, mirror
        self.name, self.resolution = f"{a.name}-{b.name}", a.resolution
        self.num_channels = max(a.num_channels, b.num_channels)

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, draws: Draws) -> Sample:
        images_a = self.a.training_images(draws.index)
        images_b = self.b.training_images(self.partner[draws.index]).to(images_a.device)
        images = torch.cat([self._coloured(images_a), self._coloured(images_b)], dim=1)
        if self.mirror:
            flip = torch.from_numpy(uniform(draws.seed, _FLIP) < 0.5).to(images.device)
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        nothing = Condition.empty(len(images))
        return Sample(images, nothing.c, nothing.h, torch.from_numpy(draws.index))

    def stateful(self) -> dict[str, Any]:
        """The partners, by content: a run is continued with those it was started with."""
        return {"partners": self}

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.b.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.b.fingerprint():
            raise UserError(
                f"--data-b={self.b.path} is not what the run was trained on: file names or contents differ. Give that "
                "data with --data-b, or start a new run"
            )

    def _coloured(self, images: torch.Tensor) -> torch.Tensor:
        return images.expand(-1, self.num_channels, -1, -1)

    def conditions(self, draws: Draws) -> Condition:
        return Condition.empty(len(draws.index))

    def showcase(self, rows: int, columns: int) -> tuple[Condition, torch.Tensor]:
        """No conditions, so nothing that explains them (columns = 0)."""
        shape = (rows, 0, self.num_channels, self.resolution, self.resolution)
        return Condition.empty(rows), torch.zeros(shape, dtype=torch.uint8)

    def exemplars(self, count: int) -> Exemplars:
        """None: a translator needs no condition."""
        return Exemplars(Condition.empty(0), torch.zeros(0, self.num_channels, 1, 1, dtype=torch.uint8), [])


def open_partner(data_b: str, a: ImageFolderDataset) -> ImageFolderDataset:
    """The images of domain B, of the same resolution.

    Raises:
        UserError: they can't be used, or differ in size.
    """
    try:
        b = ImageFolderDataset(data_b)
    except UserError as error:
        raise UserError(str(error).replace("--data=", "--data-b=", 1)) from None
    if b.resolution != a.resolution:
        sides = (f"{side}x{side}" for side in (a.resolution, b.resolution))
        raise UserError(
            "--data has images of {}, --data-b of {} pixels; expected one size: convert both with the same "
            "--resolution".format(*sides)
        )
    return b


def align(a: ImageFolderDataset, b: ImageFolderDataset, say: Callable[[str], None] = lambda line: None) -> np.ndarray:
    """Which image of `b` belongs to each of `a`, by their names without ending, int64 [len(a)].

    A data set that dataset_tool.py made knows what its images were called before; these names count, unless the two
    have none in common.

    Raises:
        UserError: an image without its partner, or two of one name.
    """
    names_a, names_b = _stems(original_names(a), "--data", a), _stems(original_names(b), "--data-b", b)
    if not names_a.keys() & names_b.keys():
        names_a, names_b = _stems(a.names, "--data", a), _stems(b.names, "--data-b", b)
        say("pairs: images were called differently before they were converted; their numbers in the data sets count")
    lonely_a = [name for name in names_a if name not in names_b]
    lonely_b = [] if a.is_subset else [name for name in names_b if name not in names_a]
    for lonely, where, other in ((lonely_a, a, b), (lonely_b, b, a)):
        if lonely:
            raise UserError(
                f"--data={a.path} --data-b={b.path}: {len(lonely):,} images of {where.path.name} have no partner of "
                f"their name in {other.path.name}: {first_of(lonely)}; expected pairs of equal names"
            )
    return np.array([names_b[name] for name in names_a], dtype=np.int64)


def original_names(dataset: ImageFolderDataset) -> list[str]:
    """What the images were called before dataset_tool.py converted them, where that is known; else their names."""
    sources = (open_source(dataset.path).metadata or {}).get("sources")
    known: Mapping[str, str] = sources if isinstance(sources, dict) else {}
    return [str(known.get(name, name)) for name in dataset.names]


def _stems(names: list[str], flag: str, dataset: ImageFolderDataset) -> dict[str, int]:
    """Name without ending -> number of the image, in the order of the images."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in numbers:
            raise UserError(
                f"{flag}={dataset.path}: {shown(names[numbers[stem]])} and {shown(name)} differ in their endings only; "
                "expected one image of a name"
            )
        numbers[stem] = number
    return numbers
