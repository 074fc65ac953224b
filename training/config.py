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

from torch_utils.command_line import LARGEST, UserError, nearest

# The largest that make sense, far beyond anything published: beyond them an allocator or an operating system gives up.
WIDEST = 8192  # features, or channels, of a layer
WIDEST_CH = 1024  # channels of a narrowest layer, of which others have a multiple
MOST_LAYERS = 100
LONGEST_KIMG = 10**9


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    resumable: bool = False,
    in_precision: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass field that is a flag too.

    Args:
        default: None means: derived from the data, the batch or the preset, as `help` says.
        help: one line for `--help`.
        choices: allowed words.
        aliases: older words on the command line for some of them.
        unit: shown behind the flag, e.g. 'KIMG'.
        low, high, above: the least and the largest value, or what a value must be above; `check_bounds` asks.
        resumable: --resume may change it.
        in_precision: what it becomes with a --precision other than auto.
    """
    metadata: dict[str, Any] = {"help": help, "choices": tuple(choices), "aliases": dict(aliases or {}), "unit": unit}
    metadata |= {"low": low, "high": high, "above": above, "resumable": resumable, "in_precision": in_precision or {}}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are conditioned."""

    data: str = option("", "Training data: a zip or folder made by dataset_tool.py.", unit="ZIP", resumable=True)
    data_b: str | None = option(
        None,
        "For systems that translate: the partners of the images of --data, by name.  [default: none]",
        unit="ZIP",
        resumable=True,
    )
    cond: str = option(
        "none",
        "What the model is conditioned on; --cond=1 means class.",
        choices=("none", "class", "instance", "instance+class", "cluster"),
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
        high=float("inf"),
    )
    clusters: int = option(100, "For --cond=cluster: how many clusters.", unit="N", low=2)
    recluster_kimg: float | None = option(
        None, "For --cond=cluster: how often to cluster again.  [default: 10 times the data]", unit="KIMG", above=0
    )
    cluster_images: int = option(
        25_000, "For --cond=cluster: how many images to cluster; the others join.", unit="N", low=2
    )
    cache: str = option(
        "auto",
        "Where decoded images are kept; auto: on the GPU or in memory, when they fit. disk: a file beside the data.",
        choices=("auto", "gpu", "ram", "disk", "none"),
        resumable=True,
    )
    bad_images: int = option(
        10,
        "Go on without images that can't be read any more, as long as they are no more than this.",
        unit="N",
        low=0,
        resumable=True,
    )
    workers: int | None = option(
        None,
        "Loader processes.  [default: 0 when images are in memory, else 2]",
        unit="N",
        low=0,
        high=1024,
        resumable=True,
    )


@dataclass(frozen=True)
class LoopOptions:
    """How long, in which portions, and what is written when."""

    kimg: float = option(
        25_000.0,
        "Train on this many thousand images in all.",
        unit="KIMG",
        above=0,
        high=LONGEST_KIMG,
        resumable=True,
    )
    batch: int = option(32, "Images per optimiser step, in all.", unit="N", low=1, high=1_000_000)
    batch_gpu: int | None = option(
        None, "Images at a time; the rest is accumulated.  [default: the whole batch]", unit="N", low=1, resumable=True
    )
    init_from: str | None = option(
        None, "Start from the weights of this snapshot, as far as they fit; of any data and condition.", unit="FILE"
    )
    freeze_d: int = option(0, "Leave the first layers of the discriminator as they are (Freeze-D).", unit="N", low=0)
    ema_kimg: float = option(10.0, "Half-life of the generator's moving average.", unit="KIMG", low=0)
    ema_rampup: float | None = option(
        0.05, "Half-life at most this share of the images seen; 0: constant.", unit="SHARE", low=0
    )
    ema_start: float = option(0.0, "Until then the moving average is a copy.", unit="KIMG", low=0)
    tick: float = option(4.0, "How often progress is printed.", unit="KIMG", above=0, high=LONGEST_KIMG)
    snap: int = option(
        50,
        "Write a snapshot, a sheet of fakes and the state every this many ticks.",
        unit="TICKS",
        low=1,
        resumable=True,
    )
    keep_last: int | None = option(
        None, "Keep only the newest snapshots, and the best.  [default: all]", unit="N", low=1, resumable=True
    )
    keep_every: float | None = option(
        None, "With --keep-last: keep those at multiples of this, too.", unit="KIMG", above=0, resumable=True
    )
    metrics: str | None = option(
        None,
        "Measure snapshots as calc_metrics.py does, except the first; for example fid10k_full.",
        unit="NAMES",
        resumable=True,
    )
    metrics_every: int = option(1, "Measure every this many snapshots.", unit="N", low=1, resumable=True)
    metrics_detector: str | None = option(
        None,
        "Detector of --metrics, as --detector of calc_metrics.py.  [default: its own]",
        unit="NAME",
        resumable=True,
    )
    metrics_weights: str | None = option(None, "Local weights of that detector.", unit="FILE", resumable=True)
    keep_best: str | None = option(
        None,
        "Which result says what is best: kept by --keep-last, heeded by --patience.  [default: the first]",
        unit="RESULT",
        resumable=True,
    )
    patience: int | None = option(
        None,
        "Stop when so many measurements in a row were no better.  [default: never]",
        unit="N",
        low=1,
        resumable=True,
    )
    wandb: str | None = option(
        None, "Send statistics to this project of Weights & Biases, too.  [default: no]", unit="PROJECT", resumable=True
    )
    max_bad_steps: int = option(
        50, "Stop after so many steps in a row with gradients that are not finite.", unit="N", low=1, resumable=True
    )
    minutes: float | None = option(
        None, "Stop, state saved, after this long.  [default: no limit]", unit="MIN", above=0, resumable=True
    )
    threads: int | None = option(
        None, "CPU threads.  [default: PyTorch's choice]", unit="N", low=1, high=1024, resumable=True
    )
    precision: str = option(
        "auto",
        "auto: float32, but float16 in --num-fp16-res on a GPU; bf16, fp16: whatever is safe in 16 bits.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    ops: str = option(
        "auto", "Native operations where they can be built, or the reference.", choices=("auto", "native", "ref")
    )
    tf32: bool = option(
        False, "Let a GPU round what it multiplies in float32 to 10 bits of mantissa: faster.", resumable=True
    )
    cudnn_benchmark: bool = option(
        True,
        "Let cuDNN try its algorithms and keep the fastest; the last bits can differ between runs.",
        resumable=True,
    )
    graphs: bool = option(False, "Record the passes of a phase as a CUDA graph, and replay it.", resumable=True)
    seed: int = option(0, "Seed of everything random.", unit="N", low=0, high=LARGEST - 1)
    device: str = option("auto", "Where to train.", choices=("auto", "cpu", "cuda", "mps"), resumable=True)


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


def check_bounds(*groups: Any) -> None:
    """Refuse numbers that an option does not allow, and those that are infinite or none.

    Raises:
        UserError: the first of them.
    """
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            low, high, above = (field.metadata[name] for name in ("low", "high", "above"))
            fits = (
                (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
            )
            if fits and (abs(value) < float("inf") or high == value):
                continue
            if above is not None:
                expected = f"a number above {above:g}" + (f", at most {_shown(high)}" if high is not None else "")
            elif low is not None and high is not None:
                expected = f"{_shown(low)} to {_shown(high)}"
            else:
                expected = "a number" if low is None else f"{low:g} or more" if low == 0 else f"at least {low:g}"
            raise UserError(f"--{field.name.replace('_', '-')}={value}: expected {expected}")


def _shown(number: float) -> str:
    """Whole numbers in full."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def kinds_of(annotation: Any) -> tuple[type, ...]:
    """The plain types an annotation allows: `int | None` -> (int, NoneType)."""
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
