"""What a run shows its discriminator: the options, and the object that carries them out and adapts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from torch_utils import training_stats
from torch_utils.command_line import UserError
from training.augment.controller import AdaController
from training.augment.diffaugment import DiffAugment
from training.augment.mirror import identity, random_mirror
from training.augment.pipe import SPECS, AugmentPipe
from training.config import option


@dataclass(frozen=True)
class AugmentOptions:
    """How images are changed before the discriminator sees them, real and fake alike."""

    aug: str = option(
        "noaug",
        "ada: as much as the discriminator overfits; fixed: always --p; diffaug: every image, as --diffaug says.",
        choices=("noaug", "ada", "fixed", "diffaug"),
    )
    augpipe: str = option("bgc", "Transformations of ada and fixed.", choices=tuple(SPECS))
    target: float = option(0.6, "ada: mean sign of D(real) to aim at.", unit="X", low=-1, high=1)
    ada_kimg: float = option(500.0, "ada: thousands of images in which p can go from 0 to 1.", unit="KIMG", above=0)
    p: float = option(
        0.0, "Probability of each transformation: of fixed, or at the start of ada.", unit="P", low=0, high=1
    )
    diffaug: str = option("color,translation,cutout", "Policy of diffaug.", unit="NAMES")


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Augmentation:
    """Called with images, [N, C, S, S] in [-1, 1], it returns what the discriminator is shown of them.

    Args:
        options: which transformations, and how often.
        mirror: DA(d): flip with probability 1/2, before anything else.
    """

    def __init__(self, options: AugmentOptions | None = None, mirror: bool = False) -> None:
        o = options or AugmentOptions()
        self.mirror = random_mirror if mirror else identity
        self.change: Callable[[torch.Tensor], torch.Tensor] = identity
        self.pipe: AugmentPipe | None = None
        self.controller: AdaController | None = None
        if o.aug == "diffaug":
            self.change = DiffAugment(o.diffaug)
        elif o.aug in ("ada", "fixed"):
            self.change = self.pipe = AugmentPipe(o.augpipe, o.p)
            self.controller = AdaController(self.pipe, o.target if o.aug == "ada" else None, ada_kimg=o.ada_kimg)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.change(self.mirror(images))

    def to(self, device: torch.device) -> "Augmentation":
        if self.pipe is not None:
            self.pipe.to(device)
        return self

    def observe(self, logits: torch.Tensor) -> None:
        """Be told D(real), once for every real image that D is trained on."""
        if self.controller is not None:
            self.controller.observe(logits)

    def end_step(self, batch: int) -> None:
        """Adapt; `batch` is the number of images of the step over all processes."""
        if self.controller is not None:
            self.controller.step(batch)

    def merge(self) -> None:
        """Move what all processes have observed to the first one, before its state is saved."""
        if self.controller is not None:
            self.controller.merge()

    def report(self) -> None:
        """Tell the statistics how strong the augmentation is, and what moves it."""
        if self.pipe is not None and self.controller is not None:
            training_stats.report("Progress/augment", self.pipe.p)
            training_stats.report("Progress/overfitting", self.controller.r_t)

    def stateful(self) -> dict[str, Stateful]:
        """What a resumed run needs."""
        if self.pipe is None or self.controller is None:
            return {}
        return {"augment_pipe": self.pipe, "ada": self.controller}


def check_augment(o: AugmentOptions, given: Callable[[str], bool]) -> None:
    """Refuse what can't be, and flags that would do nothing.

    Args:
        given: whether an option was given on the command line.

    Raises:
        UserError: one line that names the flags.
    """
    if o.aug == "fixed" and o.p == 0:
        raise UserError("--aug=fixed --p=0.0 changes no image; give --p above 0, or use --aug=noaug")
    users = {"p": ("ada", "fixed"), "augpipe": ("ada", "fixed"), "target": ("ada",), "ada_kimg": ("ada",)}
    for name, kinds in (users | {"diffaug": ("diffaug",)}).items():
        if given(name) and o.aug not in kinds:
            flag = f"--{name.replace('_', '-')}={getattr(o, name)}"
            raise UserError(f"{flag} does nothing with --aug={o.aug}; use --aug={' or '.join(kinds)}, or leave it out")
    DiffAugment(o.diffaug)  # refuses an unknown name
