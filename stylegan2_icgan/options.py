"""From flags, preset and data to one resolved configuration that says where every value came from."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stylegan2_icgan.features import check_extractor_name
from stylegan2_icgan.making import StoreOptions
from stylegan2_icgan.presets import PRESETS
from stylegan2_icgan.systems import SYSTEMS
from torch_utils.command_line import UserError, nearest
from training.augment import AugmentOptions, check_augment
from training.config import DataOptions, LoopOptions, from_json, option, to_json


@dataclass(frozen=True)
class InstanceOptions(StoreOptions):
    """Instances: how they are stored, how they condition, which of them a snapshot carries."""

    mirror_instances: bool = option(False, "DA(i): condition on the flipped instance with probability 1/2.")
    exemplars: int = option(1000, "Conditions stored in each snapshot.", unit="N")
    exemplar_selection: str = option(
        "kmeans", "kmeans: the instances nearest to the centres of so many clusters.", choices=("kmeans", "random")
    )
    instances_per_class: int | None = option(
        None, "Store so many exemplars of each class, by k-means within it, in place of --exemplars.", unit="N"
    )


SHARED = {"data": DataOptions, "instances": InstanceOptions, "loop": LoopOptions, "augment": AugmentOptions}
GROUPS = (*SHARED, "model")
RESUMABLE = ("data", "cache", "workers", "instances", "kimg", "snap", "minutes", "device")  # what --resume may change


@dataclass(frozen=True)
class TrainingOptions:
    """Everything a run was told: `training_options.json`."""

    cfg: str
    system: str
    data: DataOptions
    instances: InstanceOptions
    loop: LoopOptions
    augment: AugmentOptions
    model: Any  # the system's own options
    sources: Mapping[str, str]  # option -> 'flag', 'cfg tiny', 'default' or how it was derived

    @property
    def wants_labels(self) -> bool:
        return "class" in self.data.cond

    @property
    def wants_instances(self) -> bool:
        return "instance" in self.data.cond

    def json(self) -> dict[str, Any]:
        groups = {name: to_json(getattr(self, name)) for name in GROUPS}
        return {"cfg": self.cfg, "system": self.system, **groups, "sources": dict(self.sources)}

    def flat(self) -> dict[str, Any]:
        """option -> value, over all groups."""
        return {k: v for name in GROUPS for k, v in to_json(getattr(self, name)).items()}


def resolve(cfg: str, flags: Mapping[str, Any], resolution: int) -> TrainingOptions:
    """Defaults, then the preset, then flags, then what can be derived.

    Args:
        cfg: name of a preset.
        flags: option -> value, as given; None: not given.
        resolution: of the data.

    Raises:
        UserError: an unknown preset or option, or a combination that can't work.
    """
    if cfg not in PRESETS:
        raise UserError(f"--cfg={cfg} is unknown; there are {', '.join(PRESETS)}.{nearest(cfg, PRESETS)}")
    system, row = PRESETS[cfg]
    kind = SYSTEMS[system]
    groups = SHARED | {"model": kind.options}
    names = {field.name: group for group, cls in groups.items() for field in dataclasses.fields(cls)}

    values: dict[str, Any] = {f.name: f.default for cls in groups.values() for f in dataclasses.fields(cls)}
    sources = dict.fromkeys(values, "default")
    given = {name: value for name, value in flags.items() if value is not None}
    for origin, layer in ((f"cfg {cfg}", row(resolution)), ("flag", given)):
        for name, value in layer.items():
            if name not in names:
                raise UserError(f"--{name.replace('_', '-')} is no option of {system}.{nearest(name, names)}")
            values[name], sources[name] = value, origin

    def group(name: str) -> Any:
        return from_json(
            groups[name], {key: values[key] for key, there in names.items() if there == name}, f"cfg {cfg}"
        )

    loop = group("loop")
    _check_loop(loop)
    batch_gpu = loop.batch_gpu or loop.batch
    for name, (value, why) in kind.derive(group("model"), resolution, loop.batch, batch_gpu).items():
        if values[name] is None:
            values[name], sources[name] = value, f"derived: {why}"
    shared = {name: group(name) for name in SHARED}
    resolved = TrainingOptions(cfg, system, **shared, model=group("model"), sources=sources)
    if (resolved.data.workers or 0) < 0:
        raise UserError(f"--workers={resolved.data.workers}: expected 0 or more")
    _check_instances(resolved)
    check_augment(resolved.augment, lambda name: sources[name] == "flag")
    kind.check(resolved.model, resolution, batch_gpu)
    return resolved


def restore(content: Mapping[str, Any], flags: Mapping[str, Any], where: str) -> TrainingOptions:
    """The options of an earlier run, with the flags that a continued run may change.

    Raises:
        UserError: unknown keys, or a flag that would make it another run.
    """
    try:
        cls = SYSTEMS[content["system"]].options
        options = TrainingOptions(
            content["cfg"],
            content["system"],
            from_json(DataOptions, content["data"], where),
            from_json(InstanceOptions, content["instances"], where),
            from_json(LoopOptions, content["loop"], where),
            from_json(AugmentOptions, content.get("augment", {}), where),  # older runs had none
            from_json(cls, content["model"], where),
            dict(content["sources"]),
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} does not hold the options of a run ({error!r})") from None
    before = options.flat()
    changed = {name: value for name, value in flags.items() if value is not None and before.get(name) != value}
    for name in changed:
        if name not in RESUMABLE:
            raise UserError(
                f"--{name.replace('_', '-')}={changed[name]} given with --resume, but the run was started with "
                f"{before.get(name)}; leave it out, or start a new run"
            )

    def updated(group: Any) -> Any:
        return dataclasses.replace(group, **{k: v for k, v in changed.items() if k in to_json(group)})

    options = dataclasses.replace(
        options,
        data=updated(options.data),
        instances=updated(options.instances),
        loop=updated(options.loop),
        sources=dict(options.sources) | dict.fromkeys(changed, "flag of --resume"),
    )
    _check_loop(options.loop)
    return options


def _check_instances(options: TrainingOptions) -> None:
    o = options.instances
    for name in ("exemplars", "instances_per_class"):
        value = getattr(o, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}={value}: expected at least 1")
    if o.instances_per_class is not None and options.data.cond != "instance+class":
        raise UserError(
            f"--instances-per-class={o.instances_per_class} needs instances and classes, but "
            f"--cond={options.data.cond}; use --exemplars, or --cond=instance+class"
        )
    if o.extractor is not None:
        check_extractor_name(o.extractor)


def _check_loop(loop: LoopOptions) -> None:
    for name in ("kimg", "batch", "tick", "snap", "batch_gpu", "minutes", "threads"):
        value = getattr(loop, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')}={value}: expected a number above 0")
    if loop.batch_gpu is not None and loop.batch % loop.batch_gpu:
        raise UserError(
            f"--batch={loop.batch} is not a multiple of --batch-gpu={loop.batch_gpu}; the rounds must be equal"
        )
    for name in ("ema_kimg", "ema_rampup", "ema_start"):
        if not 0 <= (getattr(loop, name) or 0) < float("inf"):
            raise UserError(f"--{name.replace('_', '-')}={getattr(loop, name)}: expected 0 or more")
