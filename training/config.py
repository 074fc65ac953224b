"""Options as frozen dataclasses: declared once, turned into flags, JSON and back, unknown keys refused.

A field made with `option(...)` is at once a default, a documented command-line flag and a key of
`training_options.json`; a system declares its own options in its own file and needs no other.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch_utils.command_line import UserError, nearest


def option(
    default: Any, help: str, *, choices: Sequence[str] = (), aliases: Mapping[str, str] | None = None, unit: str = ""
) -> Any:
    """A dataclass field that is a flag too.

    Args:
        default: None means: derived from the data, the batch or the preset, as `help` says.
        help: one line for `--help`.
        choices: allowed words.
        aliases: older words on the command line for some of them.
        unit: shown behind the flag, e.g. 'KIMG'.
    """
    metadata = {"help": help, "choices": tuple(choices), "aliases": dict(aliases or {}), "unit": unit}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are conditioned."""

    data: str = option("", "Training data: a zip or folder made by dataset_tool.py.", unit="ZIP")
    cond: str = option(
        "none",
        "What the model is conditioned on; --cond=1 means class.",
        choices=("none", "class", "instance", "instance+class"),
        aliases={"0": "none", "1": "class", "class+instance": "instance+class"},
    )
    subset: int | None = option(None, "Train on this many random images only.  [default: all]", unit="N")
    mirror: bool = option(False, "DA(d): flip what the discriminator sees, real and fake, with probability 1/2.")
    sampling: str = option(
        "instance",
        "instance: all instances alike, then a neighbour; class: a class, an image of it, an instance it is near to.",
        choices=("instance", "class"),
    )
    class_temperature: float | None = option(
        None,
        "For --sampling=class: p(y) ~ (share of y)^(1/T); 1: as in the data.  [default: all classes alike]",
        unit="T",
    )
    cache: str = option(
        "auto",
        "Where decoded images are kept; auto: on the GPU or in memory, when they fit. disk: a file beside the data.",
        choices=("auto", "gpu", "ram", "disk", "none"),
    )
    workers: int | None = option(None, "Loader processes.  [default: 0 when images are in memory, else 2]", unit="N")


@dataclass(frozen=True)
class LoopOptions:
    """How long, in which portions, and what is written when."""

    kimg: float = option(25_000.0, "Train on this many thousand images in all.", unit="KIMG")
    batch: int = option(32, "Images per optimiser step, in all.", unit="N")
    batch_gpu: int | None = option(
        None, "Images at a time; the rest is accumulated.  [default: the whole batch]", unit="N"
    )
    ema_kimg: float = option(10.0, "Half-life of the generator's moving average.", unit="KIMG")
    ema_rampup: float | None = option(
        0.05, "Half-life at most this share of the images seen; 0: constant.", unit="SHARE"
    )
    ema_start: float = option(0.0, "Until then the moving average is a copy.", unit="KIMG")
    tick: float = option(4.0, "How often progress is printed.", unit="KIMG")
    snap: int = option(50, "Write a snapshot, a sheet of fakes and the state every this many ticks.", unit="TICKS")
    minutes: float | None = option(None, "Stop, state saved, after this long.  [default: no limit]", unit="MIN")
    threads: int | None = option(None, "CPU threads.  [default: PyTorch's choice]", unit="N")
    seed: int = option(0, "Seed of everything random.", unit="N")
    device: str = option("auto", "Where to train.", choices=("auto", "cpu", "cuda", "mps"))


Options = typing.TypeVar("Options")


def to_json(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass, by name."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def from_json(cls: type[Options], values: Mapping[str, Any], where: str) -> Options:
    """The dataclass with these values; fields that are not named keep their defaults.

    Raises:
        UserError: an unknown key (nearest match offered), a value of the wrong type, a word that is not a choice.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kinds = typing.get_type_hints(cls)
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{where}: unknown option {name!r}.{nearest(name, fields)}")
        allowed = kinds_of(kinds[name])
        if float in allowed and type(value) is int:
            continue
        if type(value) not in allowed:
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise UserError(f"{where}: {name} is {value!r}; expected {expected}")
        choices = fields[name].metadata.get("choices", ())
        if choices and value is not None and value not in choices:
            raise UserError(
                f"{where}: {name} is {value!r}; expected one of {', '.join(choices)}.{nearest(value, choices)}"
            )
    return cls(**values)


def kinds_of(annotation: Any) -> tuple[type, ...]:
    """The plain types an annotation allows: `int | None` -> (int, NoneType)."""
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
