"""From flags, preset and data to one resolved configuration that says where every value came from."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metrics.metric_names import parse_metrics
from stylegan2_icgan.features import check_extractor_name
from stylegan2_icgan.making import StoreOptions
from stylegan2_icgan.presets import PRESETS
from stylegan2_icgan.systems import SYSTEMS, check_condition
from torch_utils.command_line import NONE, UserError, nearest
from torch_utils.distributed import launched
from training.augment import AugmentOptions, check_augment
from training.class_prior import check_sampling
from training.config import DataOptions, LoopOptions, check_bounds, from_json, option, to_json


@dataclass(frozen=True)
class InstanceOptions(StoreOptions):
    """Instances: how they are stored, how they condition, which of them a snapshot carries."""

    mirror_instances: bool = option(False, "DA(i): condition on the flipped instance with probability 1/2.")
    exemplars: int = option(1000, "Conditions stored in each snapshot.", unit="N", low=1)
    exemplar_selection: str = option(
        "kmeans", "kmeans: the instances nearest to the centres of so many clusters.", choices=("kmeans", "random")
    )
    instances_per_class: int | None = option(
        None, "Store so many exemplars of each class, by k-means within it, in place of --exemplars.", unit="N", low=1
    )


OF_INSTANCES = (*(field.name for field in dataclasses.fields(StoreOptions)), "mirror_instances", "exemplar_selection")
SHARED = {"data": DataOptions, "instances": InstanceOptions, "loop": LoopOptions, "augment": AugmentOptions}
GROUPS = (*SHARED, "model")


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


def resolve(cfg: str, flags: Mapping[str, Any], resolution: int, processes: int | None = None) -> TrainingOptions:
    """Defaults, then the preset, then flags, then what can be derived.

    Args:
        cfg: name of a preset.
        flags: option -> value, as given; None: not given; 'none': nothing, where that is the default.
        resolution: of the data.
        processes: that share a batch; None: as many as were launched.

    Raises:
        UserError: an unknown preset or option, or a combination that can't work.
    """
    if cfg not in PRESETS:
        raise UserError(f"--cfg={cfg} is unknown; there are {', '.join(PRESETS)}.{nearest(cfg, PRESETS)}")
    preset = PRESETS[cfg]
    if preset.resolution not in (None, resolution):
        rows = [(name, row) for name, row in PRESETS.items() if row.system == preset.system]
        others = [name for name, row in rows if row.resolution == resolution]
        others = others or [name for name, row in rows if row.resolution is None]
        remedy = f"convert the data, or use --cfg={' or '.join(others or ['auto'])}"
        raise UserError(f"--cfg={cfg} is for {preset.resolution} pixels, the images have {resolution}; {remedy}")
    system, kind = preset.system, SYSTEMS[preset.system]
    groups = SHARED | {"model": kind.options}
    names = {field.name: group for group, cls in groups.items() for field in dataclasses.fields(cls)}

    values: dict[str, Any] = {f.name: f.default for cls in groups.values() for f in dataclasses.fields(cls)}
    sources = dict.fromkeys(values, "default")
    for origin, layer in ((f"cfg {cfg}", preset.values(resolution)), ("flag", _given(flags, groups.values()))):
        for name, value in layer.items():
            if name not in names:
                raise UserError(f"--{name.replace('_', '-')} is no option of {system}.{nearest(name, names)}")
            values[name], sources[name] = value, origin

    def group(name: str) -> Any:
        return from_json(
            groups[name], {key: values[key] for key, there in names.items() if there == name}, f"cfg {cfg}"
        )

    check_bounds(*map(group, GROUPS))
    loop = group("loop")
    processes = processes or launched()[1]
    _check_loop(loop, processes)
    batch_gpu = round_size(loop, processes)
    _follow_precision(kind.options, loop.precision, values, sources)
    for name, (value, why) in preset.derive(loop.batch, batch_gpu).items():
        if sources[name] != "flag":
            values[name], sources[name] = value, f"derived: {why}"
    for name, (value, why) in kind.derive(group("model"), resolution, loop.batch, batch_gpu).items():
        if values[name] is None:
            values[name], sources[name] = value, f"derived: {why}"
    resolved = TrainingOptions(cfg, system, **{name: group(name) for name in GROUPS}, sources=sources)
    _check_instances(resolved)
    _check_idle(resolved, lambda name: sources.get(name) == "flag")
    check_sampling(resolved.data.sampling, resolved.data.class_temperature, resolved.data.cond)
    check_augment(resolved.augment, lambda name: sources[name] == "flag")
    if resolved.augment.aug == "ada" and not kind.signed:
        raise UserError(
            f"--aug=ada follows the sign of D(real), which says nothing of the critic of {system}; use --aug=fixed "
            "with --p, or --aug=diffaug"
        )
    check_system(resolved, resolution, processes)
    return resolved


def _given(flags: Mapping[str, Any], groups: Iterable[type]) -> dict[str, Any]:
    """The flags that were given, with None for those that are taken back."""
    removable = {f.name for cls in groups for f in dataclasses.fields(cls) if f.default is None}
    return {
        name: None if value == NONE and name in removable else value
        for name, value in flags.items()
        if value is not None
    }


def _follow_precision(options: type, precision: str, values: dict[str, Any], sources: dict[str, str]) -> None:
    """Give a system's options the values that --precision means; refuse flags that say otherwise."""
    for field in dataclasses.fields(options):
        name, meant = field.name, field.metadata["in_precision"]
        if precision not in meant:
            continue
        if sources[name] != "flag":
            values[name], sources[name] = meant[precision], f"derived: --precision={precision}"
        elif values[name] != meant[precision]:
            short = " (or --fp32)" if precision == "fp32" else ""
            raise UserError(
                f"--{name.replace('_', '-')}={values[name]} contradicts --precision={precision}{short}, which means "
                f"{meant[precision]}; leave one of them out"
            )


def restore(
    content: Mapping[str, Any], flags: Mapping[str, Any], where: str, processes: int | None = None
) -> TrainingOptions:
    """The options of an earlier run, with the flags that a continued run may change.

    Args:
        content: what `TrainingOptions.json` gave.
        flags: option -> value, as given; None: not given; 'none': taken back, where nothing is the default.
        where: what an error calls the content.
        processes: that share a batch from now on; None: as many as were launched.

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
    resumable = {f.name for cls in SHARED.values() for f in dataclasses.fields(cls) if f.metadata["resumable"]}
    given = _given(flags, [*SHARED.values(), cls])
    changed = {name: value for name, value in given.items() if before.get(name) != value}
    for name in changed:
        if name not in resumable:
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
    check_bounds(*(getattr(options, name) for name in GROUPS))
    _check_loop(options.loop, processes or launched()[1])
    _check_idle(options, given.__contains__)
    return options


def check_system(options: TrainingOptions, resolution: int, processes: int | None = None) -> None:
    """Refuse what the system can't do: this condition, this resolution, with as many images at a time."""
    check_condition(options.system, options.model, options.data.cond)
    SYSTEMS[options.system].check(options.model, resolution, round_size(options.loop, processes or launched()[1]))


def _check_instances(options: TrainingOptions) -> None:
    o = options.instances
    if o.instances_per_class is not None and options.data.cond != "instance+class":
        raise UserError(
            f"--instances-per-class={o.instances_per_class} needs instances and classes, but "
            f"--cond={options.data.cond}; use --exemplars, or --cond=instance+class"
        )
    if o.extractor is not None:
        check_extractor_name(o.extractor)


def _check_idle(options: TrainingOptions, given: Callable[[str], bool]) -> None:
    """Refuse flags that would do nothing beside the others.

    Args:
        given: whether an option was given on the command line.
    """
    values, conditions = options.flat(), SYSTEMS[options.system].conditions
    with_instances = [
        f"--cond={cond}"
        for cond in ("instance", "instance+class")
        if conditions is None or cond in conditions(options.model)
    ]
    cond, needs = (
        f"with --cond={options.data.cond}",
        f"use {' or '.join(with_instances)}, or " if with_instances else "",
    )
    per_class = options.instances.instances_per_class
    rows: list[tuple[Sequence[str], bool, str, str]] = [  # flags, whether they do something, else why not, remedy
        (OF_INSTANCES, options.wants_instances, cond, needs),
        (("exemplars",), options.data.cond != "none", cond, ""),
        (("exemplars", "exemplar_selection"), per_class is None, f"with --instances-per-class={per_class}", ""),
        (("metrics_every",), options.loop.metrics is not None, "without --metrics", "give it, or "),
        (("r1_interval",), values.get("gamma") != 0, "with --gamma=0", "give --gamma above 0, or "),
        (("pl_interval",), values.get("pl_weight") != 0, "with --pl-weight=0", "give --pl-weight above 0, or "),
    ]
    for names, works, why, remedy in rows:
        for name in names:
            value = values.get(name)
            if works or not given(name) or value is False:
                continue
            flag = f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}"
            raise UserError(f"{flag} does nothing {why}; {remedy}leave it out")


def _check_loop(loop: LoopOptions, processes: int) -> None:
    """Refuse batches that do not come out even, over processes and rounds, and settings of metrics without metrics."""
    if loop.batch % processes:
        raise UserError(
            f"--batch={loop.batch} is not a multiple of the {processes} processes (--gpus, or torchrun's); each takes "
            "as many images"
        )
    share = loop.batch // processes
    if loop.batch_gpu is not None and share % loop.batch_gpu:
        each = f" ({share} for each of {processes} processes)" if processes > 1 else ""
        raise UserError(
            f"--batch={loop.batch}{each} is not a multiple of --batch-gpu={loop.batch_gpu}; the rounds must be equal"
        )
    if loop.metrics is not None:
        parse_metrics(loop.metrics)
    for name in ("keep_best", "patience", "metrics_detector", "metrics_weights"):
        if getattr(loop, name) is not None and loop.metrics is None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}={getattr(loop, name)} needs measurements; give --metrics, too, or {flag}=none")
    if loop.wandb:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise UserError(
                f"--wandb={loop.wandb} needs the package wandb; pip install wandb, or leave it out (of a run that goes "
                "on: --wandb=none)"
            ) from None
    if loop.keep_every is not None and loop.keep_last is None:
        raise UserError(
            f"--keep-every={loop.keep_every:g} does nothing without --keep-last; give it, or --keep-every=none"
        )


def round_size(loop: LoopOptions, processes: int) -> int:
    """Images of a round: what one process computes at a time."""
    return loop.batch_gpu or loop.batch // processes
