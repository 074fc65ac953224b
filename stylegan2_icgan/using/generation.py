# ruff: noqa: RUF009 - option() makes a field of a dataclass, as dataclasses.field does
"""What generate.py can be asked for: a folder of images, a data set of many, or what projector.py found."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stylegan2_icgan.conditioning import FEW, Choice
from stylegan2_icgan.evaluation.conditions import Conditions
from stylegan2_icgan.models import Model
from stylegan2_icgan.projection.files import check_fits, read_projection, render
from stylegan2_icgan.standing import normalised
from stylegan2_icgan.using.choosing import chosen_rows
from stylegan2_icgan.using.dataset_zip import ORDERS, points_of, write_zip
from stylegan2_icgan.using.flags import Flags, check_shared, never_together, only_with
from stylegan2_icgan.using.image_files import FORMATS, LAYOUTS, save_image, save_sheet, write_grid, writing_to
from stylegan2_icgan.using.instance_mix import parse_mix
from stylegan2_icgan.using.nearest import Neighbourhood
from stylegan2_icgan.using.rendering import Renderer, require_styles
from torch_utils.command_line import UserError
from torch_utils.files import sha256
from training.config import option
from training.networks.conditional_norm import STANDING_PASSES

SEEDS = range(8)  # when nobody says
STANDING_BATCH = 32  # images of a pass that standing statistics are taken of
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """The flags of generate.py alone that are one word each."""

    data: Path | None = option(None, "Training images: shows those that features belong to, and --nearest.", unit="ZIP")
    nearest: int = option(0, "Show the N training images nearest to each instance.", unit="N")
    batch: int = option(
        1, "Images at a time. More is faster, and may change single pixel values by 1 (docs/using.md).", unit="N"
    )
    format: str = option("png", "npz: one file of all pixels and conditions.", choices=FORMATS)
    layout: str = option("flat", "folders: one for each condition.", choices=LAYOUTS)
    num: int | None = option(None, "How many images in --outzip; image n has seed n.", unit="N")
    outzip: Path | None = option(None, "Write a data set in place of a folder.", unit="ZIP")
    draw: str = option("round-robin", "Conditions of --outzip: each in turn, or at random.", choices=ORDERS)
    bn_mode: str = option(
        "running",
        "By what a generator with batch norm normalises: statistics of training; or standing ones, over "
        f"{STANDING_PASSES} batches of exemplars with the weights as they are.",
        choices=("running", "standing"),
    )
    projected_w: Path | None = option(None, "Render what projector.py found.", unit="NPZ")


@dataclass(frozen=True)
class Wanted(Options):
    """What to generate."""

    seeds: list[int] | None = None
    mix: tuple[str, ...] = ()


def check(given: Mapping[str, Any]) -> None:
    """Refuse flags that contradict each other, would do nothing, or can't be."""
    check_shared(given)
    conditions = ("instance_feats", "instance_images", "instances", "rows", "label", "mix", "data")
    never_together(given, "num", ["seeds"], "image n of --outzip has seed n")
    never_together(
        given, "outzip", ["outdir", "format", "layout", "nearest"], "the zip holds PNG, and there is no sheet"
    )
    never_together(
        given,
        "projected_w",
        [*conditions, "seeds", "trunc", "outzip", "num", "nearest", "batch", "layout", "bn_mode"],
        "the images of a w depend on nothing else",
    )
    if given.get("format") == "npz":
        why = "--format=npz holds conditions and all images in one file"
        never_together(given, "format", ["projected_w", "layout"], why)
    only_with(given, "num", ["outzip"])
    only_with(given, "outzip", ["num"])
    only_with(given, "draw", ["outzip"])
    only_with(given, "nearest", ["data"])
    only_with(given, "data", ["instance_feats", "nearest"])
    for name in ("num", "batch", "nearest"):
        if given.get(name, 1) < 1:
            raise UserError(f"--{name}={given[name]}: expected at least 1")
    if "outzip" in given and given["outzip"].exists():
        raise UserError(f"--outzip={given['outzip']} exists; give another name, or remove it")


def generate(model: Model, flags: Flags, wanted: Wanted, say: Say) -> str:
    """Write what is wanted; a line on what was written."""
    if wanted.projected_w is not None:
        return _projected(model, flags, wanted, wanted.projected_w)
    with contextlib.ExitStack() as stack:
        if wanted.bn_mode != "running":  # as it is: wrong flags are told before a network is built
            how = {"truncation_psi": flags.trunc, "truncation_cutoff": flags.trunc_cutoff}
            conditions = Conditions(model.exemplars)
            stack.enter_context(normalised(model, wanted.bn_mode, conditions, STANDING_BATCH, **how))
        return _generated(model, flags, wanted, say)


def _generated(model: Model, flags: Flags, wanted: Wanted, say: Say) -> str:
    """Images of conditions and noise."""
    choice = Choice(flags.rows, FEW if wanted.num is None else wanted.num)
    table = chosen_rows(model, flags, choice, [parse_mix(text) for text in wanted.mix], wanted.data)
    seeds = list(SEEDS if wanted.seeds is None else wanted.seeds)
    if wanted.outzip is None and wanted.format != "npz":
        _each_once(table.ids, "--rows" if flags.instances is None else f"--instances={flags.instances}")
        _each_once(seeds, "--seeds")
    explaining = table.images
    if wanted.nearest and wanted.data is not None:
        near = Neighbourhood(model, wanted.data, wanted.nearest).images(table)
        explaining = torch.cat([explaining, near], dim=1) if explaining.shape[1] else near
    renderer = Renderer(model, flags, wanted.batch)

    if wanted.outzip is not None and wanted.num is not None:
        about = {
            "network": model.path.name,
            "network_sha256": sha256(model.path),
            "truncation": {"psi": flags.trunc, "center": flags.trunc_center, "cutoff": flags.trunc_cutoff},
            "noise_mode": flags.noise_mode,
            "bn_mode": wanted.bn_mode,
            "batch": wanted.batch,
            "draw": wanted.draw,
        }
        with writing_to(wanted.outzip.parent, "--outzip"):
            write_zip(renderer, table, points_of(wanted.num, table, wanted.draw), wanted.outzip, about, say)
        return f"{wanted.num} images of {len(table)} conditions in {wanted.outzip}"

    with writing_to(flags.outdir):
        samples = write_grid(renderer, table, seeds, flags.outdir, wanted.layout, wanted.format)
        save_sheet(samples, explaining[: len(samples)], flags.outdir / "sheet.png")
    count, shown = len(table) * len(seeds), samples.shape[0] * samples.shape[1]
    which = "all" if shown == count else f"the first {samples.shape[1]} of {samples.shape[0]} conditions"
    return f"{count} images in {flags.outdir}, {which} of them on {flags.outdir / 'sheet.png'}"


def _each_once(numbers: Sequence[int], flag: str) -> None:
    """Files are named by condition and seed."""
    seen: set[int] = set()
    for number in numbers:
        if number in seen:
            raise UserError(f"{flag}: {number} stands there twice, for files of one name; expected each once")
        seen.add(number)


def _projected(model: Model, flags: Flags, wanted: Wanted, path: Path) -> str:
    """The images of styles that were saved, by the function that projector.py renders them with."""
    require_styles(model, f"--projected-w={path}")
    projection = read_projection(path)
    check_fits(model.generator, projection)
    if projection.network_sha256 not in ("", sha256(model.path)):
        raise UserError(
            f"--projected-w={path} was found with another snapshot (sha256 {projection.network_sha256[:12]}...) than "
            f"--network={model.path}; give that one"
        )
    images = render(model.generator, projection, flags.noise_mode)
    with writing_to(flags.outdir):
        for row, image in enumerate(images):
            save_image((flags.outdir / f"projected{row:04d}.{wanted.format}", image))
    return f"{len(images)} images in {flags.outdir}"
