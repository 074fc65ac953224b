# ruff: noqa: RUF009 - option() makes a field of a dataclass, as dataclasses.field does
"""The flags of projector.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylegan2_icgan.projection.distances import CHOICES
from stylegan2_icgan.using.flags import OPS, never_together, only_with
from torch_utils.command_line import UserError
from torch_utils.custom_ops import MODES
from training.config import option

HIGHEST_LR = 1000


@dataclass(frozen=True)
class SearchOptions:
    """How to search. The numbers are those of StyleGAN2, appendix D."""

    steps: int = option(1000, "Steps of the search.", unit="N")
    lr: float = option(0.1, "Highest learning rate.", unit="LR")
    space: str = option("w", "w: one style for all layers; w+: one for each.", choices=("w", "w+"))
    optimise_instance: bool = option(False, "Search z and the instance feature h, and w as what is made of them.")
    optimise_noise: bool = option(False, "Search the noise maps, too, kept noise by regularisation.")
    seed: int = option(0, "Seed of all that is drawn.", unit="N")


@dataclass(frozen=True)
class Options:
    """What to work on: the flags that are one word each."""

    instance_feats: Path | None = option(
        None, "Instances: rows of this .npy or .npz file.  [default: the targets themselves]", unit="FILE"
    )
    extractor_weights: Path | None = option(None, "Local weights of the model's extractor.", unit="FILE")
    distance: str = option("auto", "What to make small; auto: lpips where its weights are here.", choices=CHOICES)
    video: bool = option(False, "Film the search.")
    outdir: Path = option(Path("out"), "Where to write.", unit="DIR")
    ops: str = option("auto", OPS, choices=MODES)
    device: str = option("auto", "Where networks run.", choices=("auto", "cpu", "cuda", "mps"))


@dataclass(frozen=True)
class Inputs(Options):
    """What to work on."""

    network: Path = Path()
    targets: Sequence[Path] = ()
    labels: Sequence[int] | None = None
    rows: Sequence[int] | None = None
    lpips_weights: Sequence[Path] = ()


def check(given: Mapping[str, Any], search: SearchOptions) -> None:
    """Refuse flags that contradict each other, would do nothing, or can't be.

    Args:
        given: the flags that the user gave, by name.

    Raises:
        UserError: naming the flag.
    """
    only_with(given, "rows", ["instance_feats"])
    never_together(given, "instance_feats", ["extractor_weights"], "no feature is made of the targets then")
    if given.get("distance") == "pyramid":
        never_together(given, "lpips_weights", ["distance"], "a pyramid needs no weights")
    if search.steps < 1:
        raise UserError(f"--steps={search.steps}: expected at least 1")
    if not 0 < search.lr <= HIGHEST_LR:
        raise UserError(f"--lr={search.lr}: expected more than 0, at most {HIGHEST_LR}; 0.1 is usual")
    if not 0 <= search.seed < 1 << 32:
        raise UserError(f"--seed={search.seed}: expected 0 to 2^32 - 1")
    if search.optimise_instance and search.space != "w":
        raise UserError(
            "--optimise-instance and --space=w+ are both given; with the first one w is what the mapping network makes "
            "of z and h, one style for all layers"
        )
