import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import Refused, invoke

import train
from stylegan2_icgan.options import OF_INSTANCES, InstanceOptions, check_system, resolve, restore
from stylegan2_icgan.presets import PRESETS
from stylegan2_icgan.systems.stylegan2 import StyleGAN2Options
from torch_utils.command_line import UserError
from training.augment import AugmentOptions
from training.config import DataOptions, LoopOptions, from_json, kinds_of, to_json

GROUPS = (DataOptions, InstanceOptions, LoopOptions, AugmentOptions, StyleGAN2Options)
LEGAL = {  # where not everything of the type is
    "style_mixing": 0.5,
    "metrics": "fid10k_full",
    "extractor": "resnet50",
    "diffaug": "translation",
    "target": 0.5,
    "p": 0.3,
}
NEEDS = {  # flags that need others
    "batch_gpu": ["--batch=64"],
    "keep_every": ["--keep-last=1"],
    **{name: ["--metrics=fid10k"] for name in ("keep_best", "patience", "metrics_detector", "metrics_weights")},
    "instances_per_class": ["--cond=instance+class"],
    "sampling": ["--cond=class"],
    "class_temperature": ["--cond=class", "--sampling=class"],
    **{name: ["--cond=instance"] for name in (*OF_INSTANCES, "exemplars")},
    "metrics_every": ["--metrics=fid10k"],
    "pl_interval": ["--pl-weight=2"],
    "diffaug": ["--aug=diffaug"],
    **{name: ["--aug=ada"] for name in ("p", "target", "ada_kimg", "augpipe")},
}
FIELDS = [(cls, field) for cls in GROUPS for field in dataclasses.fields(cls)]


def another_value(cls: type, field: dataclasses.Field[Any], resolved: Any) -> Any:
    """A legal value other than the resolved one."""
    if field.metadata["choices"]:
        return next(word for word in field.metadata["choices"] if word != resolved)
    if field.name in LEGAL:
        return LEGAL[field.name]
    kind = next(kind for kind in kinds_of(typing.get_type_hints(cls)[field.name]) if kind is not type(None))
    if kind is bool:
        return not resolved
    if kind is str:
        return "something else"
    return kind((resolved or 1) * 2)


def given(flags: list[str]) -> dict[str, Any]:
    """Options of the command line."""
    params = train.main.make_context("train.py", list(flags)).params
    return {field.name: params[field.name] for _, field in FIELDS}


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=[field.name for _, field in FIELDS])
def test_every_flag_changes_the_resolved_configuration(
    cls: type, field: dataclasses.Field[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag that does nothing is the fault this sweep exists for; it goes through the real command line."""
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # which is not installed with the tests
    extra = NEEDS.get(field.name, [])
    before = resolve("tiny", given(extra), 16).flat()
    value = another_value(cls, field, before[field.name])
    name = field.name.replace("_", "-")
    kinds = kinds_of(typing.get_type_hints(cls)[field.name])
    flag = [f"--{name}" if value else f"--no-{name}"] if bool in kinds else [f"--{name}={value}"]
    after = resolve("tiny", given([*flag, *extra]), 16)
    assert after.flat()[field.name] == value
    assert after.sources[field.name] == "flag"
    changed = {key for key, now in after.flat().items() if now != before[key]}
    assert changed - {"batch", "gamma", "mbstd_group", "conv_clamp"} == {field.name} - {
        "batch",
        "gamma",
        "mbstd_group",
        "conv_clamp",
    }


def test_every_option_is_a_documented_flag() -> None:
    help_text = invoke(train.main, "--help").output
    for _, field in FIELDS:
        assert f"--{field.name.replace('_', '-')}" in help_text


def test_resolved_options_say_where_each_value_came_from() -> None:
    options = resolve("auto", {"batch": 8, "gamma": None}, 16)
    assert options.loop.batch == 8
    assert options.model.gamma == pytest.approx(0.0002 * 16**2 / 8)
    assert options.sources["batch"] == "flag"
    assert options.sources["map_layers"] == "cfg auto"
    assert options.sources["gamma"].startswith("derived: 0.0002")
    assert options.sources["r1_interval"] == "default"
    assert set(options.sources) == set(options.flat())


def test_cond_takes_the_older_names() -> None:
    for given, meant in {"1": "class", "0": "none", "class+instance": "instance+class"}.items():
        assert train.main.make_context("train.py", [f"--cond={given}"]).params["cond"] == meant


def test_options_survive_json() -> None:
    options = resolve("tiny", {"cond": "instance", "minutes": 2.5, "data": "x.zip"}, 16)
    assert restore(json.loads(json.dumps(options.json())), {}, "here") == options


def test_json_with_unknown_keys_or_wrong_types_is_refused() -> None:
    good = to_json(LoopOptions())
    assert from_json(LoopOptions, good, "here") == LoopOptions()
    with pytest.raises(UserError, match=r"here: unknown option 'bacth'. Did you mean 'batch'\?"):
        from_json(LoopOptions, {"bacth": 3}, "here")
    with pytest.raises(UserError, match="batch is 'many'; expected int"):
        from_json(LoopOptions, {"batch": "many"}, "here")
    with pytest.raises(
        UserError, match=r"device is 'cuba'; expected one of auto, cpu, cuda, mps\. Did you mean 'cuda'"
    ):
        from_json(LoopOptions, {"device": "cuba"}, "here")
    with pytest.raises(UserError, match=r"unknown option 'lr'"):
        resolve("tiny", {}, 16) and restore(resolve("tiny", {}, 16).json() | {"loop": {"lr": 1}}, {}, "here")


def test_resume_changes_only_what_keeps_the_run_the_same() -> None:
    stored = resolve("tiny", {"kimg": 10}, 16).json()
    assert restore(stored, {"kimg": 20, "snap": 1, "gamma": None}, "here").loop.kimg == 20
    same = restore(stored, {"batch": stored["loop"]["batch"]}, "here")
    assert same.sources["batch"] == "cfg tiny"
    with pytest.raises(UserError, match=r"--gamma=3.0 given with --resume, but the run was started with 0\.1"):
        restore(stored, {"gamma": 3.0}, "here")


def test_what_may_change_is_taken_back_with_none() -> None:
    stored = resolve("tiny", given(["--minutes=3", "--metrics=fid10k", "--patience=2", "--keep-last=1"]), 16).json()
    loop = restore(stored, given(["--minutes=none", "--metrics=none", "--patience=none"]), "here").loop
    assert (loop.minutes, loop.metrics, loop.patience, loop.keep_last) == (None, None, None, 1)
    with pytest.raises(UserError, match=r"--patience=2 needs measurements; give --metrics, too, or --patience=none"):
        restore(stored, given(["--metrics=none"]), "here")
    assert resolve("tiny", given(["--workers=none", "--cond=none"]), 16).data == DataOptions()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--cond=none", "--mirror-instances"],
            "--mirror-instances does nothing with --cond=none; use --cond=instance or ",
        ),
        (["--cond=class", "--k=3"], "--k=3 does nothing with --cond=class; use "),
        (["--cond=cluster", "--neighbours=exact"], "--neighbours=exact does nothing with --cond=cluster; use "),
        (["--extractor=pca"], "--extractor=pca does nothing with --cond=none; use "),
        (["--extractor-weights=x.pth"], "--extractor-weights=x.pth does nothing with --cond=none; use "),
        (["--instances=x"], "--instances=x does nothing with --cond=none; use "),
        (["--instance-feats=x.npy"], "--instance-feats=x.npy does nothing with --cond=none; use "),
        (["--feature-dtype=float16"], "--feature-dtype=float16 does nothing with --cond=none; use "),
        (["--exemplar-selection=random"], "--exemplar-selection=random does nothing with --cond=none; use "),
        (["--exemplars=5"], "--exemplars=5 does nothing with --cond=none; leave it out"),
        (["--cfg=csgan", "--data-b=b.zip", "--k=3"], "--k=3 does nothing with --cond=none; leave it out"),
        (
            ["--cond=instance+class", "--instances-per-class=2", "--exemplars=5"],
            "--exemplars=5 does nothing with --instances-per-class=2; leave it out",
        ),
        (["--metrics-every=3"], "--metrics-every=3 does nothing without --metrics; give it, or leave it out"),
        (
            ["--gamma=0", "--r1-interval=4"],
            "--r1-interval=4 does nothing with --gamma=0; give --gamma above 0, or leave",
        ),
        (
            ["--pl-weight=0", "--pl-interval=4"],
            "--pl-interval=4 does nothing with --pl-weight=0; give --pl-weight above",
        ),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags: list[str], says: str) -> None:
    cfg = next((flag.partition("=")[2] for flag in flags if flag.startswith("--cfg")), "tiny")
    with pytest.raises(UserError, match="does nothing") as caught:
        resolve(cfg, given(flags), 64)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("cfg", "flags"),
    [
        ("icgan-coco128", ["--cond=none"]),  # whose k and mirror_instances are the preset's
        ("icgan-coco128", ["--cond=none", "--no-mirror-instances"]),
        ("tiny", ["--cond=class", "--exemplars=5"]),
        ("tiny", ["--cond=cluster", "--exemplars=5"]),
        ("stylegan2", ["--r1-interval=4", "--pl-interval=4"]),  # whose gamma is derived
        ("selfcond", ["--exemplars=5", "--clusters=3"]),
        ("csgan", ["--data-b=b.zip"]),
    ],
)
def test_flags_that_do_something_are_not_refused(cfg: str, flags: list[str]) -> None:
    assert resolve(cfg, given(flags), 128).sources[
        flags[-1].strip("-").partition("=")[0].replace("no-", "").replace("-", "_")
    ]


def test_what_a_run_was_once_given_does_nothing_later_without_complaint() -> None:
    stored = resolve("tiny", given(["--metrics=fid10k"]), 16).json()
    measured = restore(stored, given(["--metrics-every=3"]), "here").json()
    assert restore(measured, given(["--metrics=none"]), "here").loop.metrics_every == 3
    with pytest.raises(UserError, match="--metrics-every=4 does nothing without --metrics"):
        restore(measured, given(["--metrics=none", "--metrics-every=4"]), "here")


@pytest.mark.parametrize(
    "flag", ["--patience=non", "--patience=None", "--subset=none", "--kimg=none", "--batch-gpu=few"]
)
def test_none_is_a_number_only_where_there_need_not_be_any(flag: str, refused: Refused) -> None:
    assert flag.partition("=")[2] in refused(train.main, flag)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"batch": 0}, "--batch=0: expected 1 to 1000000"),
        ({"batch": 8, "batch_gpu": 3}, "--batch=8 is not a multiple of --batch-gpu=3"),
        ({"mbstd_group": 5}, "--mbstd-group=5 does not divide the 16 images"),
        ({"mbstd_group": 32}, "--mbstd-group=32 does not divide the 16 .*--batch-gpu.*--batch.*such as 16"),
        ({"mbstd_group": 8, "batch_gpu": 4}, "--mbstd-group=8 does not divide the 4 images"),
        ({"gamma": -1.0}, "--gamma=-1.0: expected 0 or more"),
        ({"kimg": 0.0}, "--kimg=0.0: expected a number above 0"),
        ({"kimg": float("nan")}, "--kimg=nan: expected a number above 0"),
        ({"tick": float("inf")}, "--tick=inf: expected"),
        ({"g_lr": float("nan")}, "--g-lr=nan: expected 0 or more"),
        ({"style_mixing": 5.0}, "--style-mixing=5.0: expected 0 to 1"),
        ({"workers": -1}, "--workers=-1: expected 0 to 1024"),
        ({"z_dim": 0}, "--z-dim=0: expected 1 to 8192"),
        ({"z_dim": 99999999999}, "--z-dim=99999999999: expected 1 to 8192"),
        ({"map_layers": 99999999999}, "--map-layers=99999999999: expected 1 to 100"),
        ({"channel_max": 99999999999}, "--channel-max=99999999999: expected 1 to 8192"),
        ({"channel_base": 1}, "--channel-base=1 leaves no channels at 16 x 16 pixels; expected at least 16"),
        ({"seed": 99999999999999999999999}, "--seed=99999999999999999999999: expected 0 to 4294967295"),
        ({"seed": -1}, "--seed=-1: expected 0 to 4294967295"),
        ({"threads": 100000}, "--threads=100000: expected 1 to 1024"),
        ({"workers": 100000}, "--workers=100000: expected 0 to 1024"),
        ({"batch": 99999999999}, "--batch=99999999999: expected 1 to 1000000"),
        ({"tick": 1e306}, "--tick=1e.306: expected a number above 0, at most 1000000000"),
        ({"kimg": 1e306}, "--kimg=1e.306: expected a number above 0, at most 1000000000"),
        (
            {"precision": "fp32", "num_fp16_res": 2},
            r"--num-fp16-res=2 contradicts --precision=fp32 \(or --fp32\), which means 0; leave one of them out",
        ),
        ({"precision": "bf16", "num_fp16_res": 1}, "--num-fp16-res=1 contradicts --precision=bf16, which means 10"),
        ({"precision": "bf16", "low_dtype": "fp16"}, "--low-dtype=fp16 contradicts --precision=bf16, which means bf16"),
        ({"exemplars": 0}, "--exemplars=0: expected at least 1"),
        ({"gama": 1.0}, "--gama is no option of stylegan2. Did you mean 'gamma'"),
    ],
)
def test_combinations_that_cannot_work_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve("tiny", flags, 16)


def test_flags_that_say_the_same_as_precision_stay_flags() -> None:
    options = resolve("tiny", {"precision": "bf16", "num_fp16_res": 10}, 16)
    assert (options.model.num_fp16_res, options.sources["num_fp16_res"]) == (10, "flag")
    assert options.sources["low_dtype"] == "derived: --precision=bf16"


@pytest.mark.parametrize(("batch", "group"), [(16, 4), (8, 4), (6, 3), (10, 2), (7, 1), (3, 3), (1, 1)])
def test_a_group_that_nobody_gave_divides_the_round(batch: int, group: int) -> None:
    options = resolve("tiny", {"batch": batch}, 16)
    assert options.model.mbstd_group == group
    assert options.sources["mbstd_group"].startswith("derived: 4, or the most")
    shared = resolve("tiny", {"batch": 6 * batch, "batch_gpu": batch}, 16, processes=3)
    assert shared.model.mbstd_group == group


def test_a_presets_group_that_is_larger_than_the_round_is_refused() -> None:
    with pytest.raises(UserError, match="--mbstd-group=8 does not divide the 4 images of a round"):
        resolve("paper256", {"batch": 4}, 256)
    assert resolve("paper256", {"batch": 4, "mbstd_group": 2}, 256).model.mbstd_group == 2


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("cfg", [name for name, preset in PRESETS.items() if preset.system == "stylegan2"])
def test_presets_of_stylegan2_work_on_one_process_and_on_eight(cfg: str, processes: int) -> None:
    options = resolve(cfg, {}, PRESETS[cfg].resolution or 64, processes)
    group = {"paper256": 8, "paper512": 8, "cifar": 32}.get(cfg, 4)  # as published
    assert options.model.mbstd_group == min(group, options.loop.batch // processes)


def test_averages_in_proportion_to_the_batch_follow_the_flag() -> None:
    own = resolve("auto", {}, 64)
    assert (own.loop.batch, own.loop.ema_kimg) == (32, 10.0)
    options = resolve("auto", {"batch": 8}, 64)
    assert options.loop.ema_kimg == 2.5
    assert options.sources["ema_kimg"] == "derived: 10 * batch / 32"
    assert resolve("icgan-coco128", {}, 128).loop.ema_kimg == 20
    assert resolve("icgan-coco128", {"batch": 16}, 128).loop.ema_kimg == 5
    given = resolve("auto", {"batch": 8, "ema_kimg": 7.0}, 64)
    assert (given.loop.ema_kimg, given.sources["ema_kimg"]) == (7, "flag")


def test_a_continued_run_is_checked_for_the_processes_it_will_have() -> None:
    stored = resolve("tiny", {"batch": 8}, 16).json()
    assert restore(stored, {}, "here", processes=2).loop.batch == 8
    with pytest.raises(UserError, match="--batch=8 is not a multiple of the 3 processes"):
        restore(stored, {}, "here", processes=3)
    with pytest.raises(UserError, match="--mbstd-group=4 does not divide the 1 images"):
        check_system(restore(stored, {}, "here", processes=8), 16, processes=8)


def test_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--cfg=tniy is unknown; there are auto, tiny, .*Did you mean 'tiny'\?"):
        resolve("tniy", {}, 16)


def test_paths_with_spaces_reach_the_options(tmp_path: Path) -> None:
    context = train.main.make_context("train.py", ["--data", str(tmp_path / "my images.zip")])
    assert context.params["data"].endswith("my images.zip")
    assert isinstance(train.main, click.Command)


NEEDED = {  # by systems that can't be had without
    "adc": {"cond": "class"},
    "csgan": {"data_b": "b.zip"},
    "wgan": {},
}


def test_a_dry_run_for_several_processes_is_checked_for_so_many() -> None:
    with pytest.raises(UserError, match="--batch=16 is not a multiple of the 3 processes"):
        resolve("biggan-tiny", {}, 16, processes=3)
    with pytest.raises(UserError, match="expected at least 2"):
        resolve("biggan-tiny", {}, 16, processes=16)
    assert resolve("biggan-tiny", {}, 16, processes=4).loop.batch == 16


@pytest.mark.parametrize("cfg", ["biggan-tiny", "biggan-deep-tiny", "sagan-tiny"])
def test_the_smallest_images_have_no_resolution_for_attention(cfg: str) -> None:
    assert [resolve(cfg, {}, resolution).model.attention for resolution in (8, 16, 32)] == ["0", "8", "8"]


@pytest.mark.parametrize("cfg", PRESETS)
def test_every_preset_is_a_configuration_that_works(cfg: str) -> None:
    resolution = PRESETS[cfg].resolution or 64
    options = resolve(cfg, NEEDED.get(PRESETS[cfg].system, {"cond": "instance"}), resolution)
    assert options.system == PRESETS[cfg].system
    assert {source for source in options.sources.values() if source.startswith("cfg")} == {f"cfg {cfg}"}
    assert restore(options.json(), {}, "here").flat() == options.flat()


def test_a_preset_of_another_resolution_is_refused() -> None:
    with pytest.raises(UserError, match=r"--cfg=biggan128 is for 128 pixels, the images have 64; .*--cfg=biggan64 or"):
        resolve("biggan128", {}, 64)
    with pytest.raises(UserError, match=r"--cfg=icgan-coco128 is for 128 pixels, the images have 32; .*--cfg=auto"):
        resolve("icgan-coco128", {}, 32)


def test_fp32_takes_back_what_a_preset_computes_in_float16() -> None:
    o = resolve("paper256", {"precision": "fp32"}, 256)
    assert o.model.num_fp16_res == 0
    assert o.sources["num_fp16_res"] == "derived: --precision=fp32"


def test_an_option_of_another_system_is_refused() -> None:
    with pytest.raises(UserError, match=r"--ch is no option of stylegan2"):
        resolve("tiny", {"ch": 8}, 16)
    with pytest.raises(UserError, match=r"--map-layers is no option of biggan"):
        resolve("biggan-tiny", {"map_layers": 8}, 16)
    assert resolve("biggan-tiny", {"z_dim": 12}, 16).model.z_dim == 12
