# ruff: noqa: RUF009 - option() makes a field of a dataclass, as dataclasses.field does
"""The flags that all scripts which use a model share, and how contradictions among flags are told."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from torch_utils.command_line import Ranges, UserError, Words, dataclass_options
from torch_utils.custom_ops import MODES
from training.config import option

OPS = "Native operations where they can be built, or the reference."
CENTERS = ("global", "instance")
CENTER_DRAWS = 4096  # z whose w make up the centre of one condition: its standard error is 1/64 of their spread

Flag = TypeVar("Flag")


@dataclass(frozen=True)
class Options:
    """The flags that are one word each."""

    instance_feats: Path | None = option(None, "Condition on rows of this .npy or .npz file.", unit="FILE")
    extractor_weights: Path | None = option(None, "Local weights of the model's extractor.", unit="FILE")
    trunc: float = option(1.0, "Truncation psi.", unit="PSI")
    trunc_center: str = option(
        "global",
        f"Where psi 0 leads: the mean w of training, or that of {CENTER_DRAWS} z with the same condition.",
        choices=CENTERS,
    )
    trunc_cutoff: int | None = option(None, "Truncate only the first N styles.", unit="N")
    noise_mode: str = option("const", "Noise of the synthesis network.", choices=("const", "random", "none"))
    outdir: Path = option(Path("out"), "Where to write.", unit="DIR")
    ops: str = option("auto", OPS, choices=MODES)
    device: str = option("auto", "Where networks run.", choices=("auto", "cpu", "cuda", "mps"))


@dataclass(frozen=True)
class Flags(Options):
    """Which model, what it is conditioned on, and how its images are made."""

    network: Path = Path()
    instance_images: tuple[Path, ...] = ()
    label: int | None = None
    instances: str | None = None
    rows: list[int] | None = None


def model_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """--network and the rest of `Options`."""
    for decorate in (
        dataclass_options(Options),
        click.option("--class", "label", type=int, help="Class of every row, for models with classes.", metavar="N"),
        click.option("--instance-images", cls=Words, type=Path, help="Condition on these images.", metavar="FILE ..."),
        click.option("--network", type=Path, required=True, help="Snapshot written by train.py.", metavar="FILE"),
    ):
        function = decorate(function)
    return function


def rows_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """--instances and --rows: which of them."""
    rows = click.option(
        "--rows", type=Ranges(), help="Rows of the features, or of the stored exemplars.", metavar="0,5-9"
    )
    exemplars = click.option(
        "--instances", help="What the snapshot has: exemplars (all), or exemplars:0-31.", metavar="WHICH"
    )
    return exemplars(rows(function))


def written(name: str) -> str:
    """A parameter as the user writes it."""
    return "--class" if name == "label" else f"--{name.replace('_', '-')}"


def take(kind: type[Flag], given: Mapping[str, Any]) -> Flag:
    """A dataclass of those flags that are among its fields."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if name in names})


def actually_given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that the user gave, by name."""
    return {name: value for name, value in flags.items() if value is not None and value != ()}


def never_together(given: Mapping[str, Any], one: str, others: Iterable[str], why: str) -> None:
    """
    Raises:
        UserError: `one` and any of the others are given; it names both.
    """
    for other in others:
        if one in given and other in given:
            raise UserError(f"{written(one)} and {written(other)} are both given; {why}")


def only_with(given: Mapping[str, Any], one: str, others: Iterable[str]) -> None:
    """
    Raises:
        UserError: `one` would silently do nothing, since none of the others is given.
    """
    if one in given and not any(other in given for other in others):
        wanted = " or ".join(written(other) for other in others)
        raise UserError(f"{written(one)}={given[one]} is for {wanted}, which is missing; add it, or leave this out")


def check_shared(given: Mapping[str, Any]) -> None:
    """Refuse shared flags that contradict each other or would silently do nothing."""
    why = "expected one of them"
    never_together(given, "instance_feats", ["instance_images", "instances"], why)
    never_together(given, "instance_images", ["instances"], why)
    never_together(given, "rows", ["instance_images"], "--rows picks rows of features or exemplars")
    never_together(given, "rows", ["instances"], "write --instances=exemplars:0,5-9, or --rows alone")
    only_with(given, "extractor_weights", ["instance_images"])
    only_with(given, "trunc_center", ["trunc"])
    only_with(given, "trunc_cutoff", ["trunc"])
    if not math.isfinite(given.get("trunc", 1.0)) or given.get("trunc_cutoff", 0) < 0:
        raise UserError(
            f"--trunc={given['trunc']} --trunc-cutoff={given.get('trunc_cutoff')}: expected a finite psi and a cutoff "
            "of 0 or more"
        )
