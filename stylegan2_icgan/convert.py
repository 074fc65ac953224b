"""Turn a published checkpoint into a snapshot. Nothing in the checkpoint is executed.

\b
    python -m stylegan2_icgan.convert ffhq.pkl ffhq.pt
    python -m stylegan2_icgan.convert G_ema.pth icgan.pt --discriminator=D.pth --exemplars=instances.npy

IN is a pickle of StyleGAN2-ADA-PyTorch or of IC-GAN on it, or the state dict (.pth, .pt, .safetensors) of a StyleGAN2
or BigGAN generator of theirs. The weights keep their own licence.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from stylegan2_icgan.extractors.networks import NetworkExtractor
from stylegan2_icgan.features import EXTRACTORS, canonical_name, check_extractor_name
from stylegan2_icgan.published_files.exemplars import read_exemplars
from stylegan2_icgan.published_files.networks import Published, from_pickle, from_state_dict, is_pickle
from stylegan2_icgan.published_files.pickle_reader import Refusal
from stylegan2_icgan.published_files.stylegan2 import Unseen
from torch_utils.command_line import Command, UserError, dataclass_options
from torch_utils.files import sha256
from torch_utils.misc import pick_device
from training.checkpoint import Recipe, Snapshot, save_snapshot
from training.condition import Condition, Exemplars
from training.system import DataShape

LICENCE = (
    "The weights keep the licence they were published under: NVIDIA's and IC-GAN's (CC BY-NC 4.0) allow no commercial "
    "use. Converting changes nothing about that."
)
MOST_CLASSES = 1000  # stored as exemplars of a model that is conditioned on classes alone
BESIDE = {"G": "generator", "D": "discriminator"}  # networks in other files -> their flags
NO_NETWORK = ("pca", "file")  # extractors that a published model can't have used


@click.command(cls=Command, help=__doc__)
@click.argument("source", type=Path, metavar="IN")
@click.argument("target", type=Path, metavar="OUT")
@click.option("--discriminator", type=Path, help="State dict of the discriminator beside IN.", metavar="FILE")
@click.option("--generator", type=Path, help="State dict of the generator that IN is the average of.", metavar="FILE")
@click.option("--exemplars", type=Path, help="IC-GAN's 1,000 instances, or rows of features.", metavar="NPY")
@click.option("--extractor", help="What made the model's features, e.g. swav or resnet50.", metavar="NAME")
@click.option("--extractor-weights", type=Path, help="Its weights.", metavar="FILE")
@dataclass_options(Unseen)
def main(
    source: Path,
    target: Path,
    discriminator: Path | None,
    generator: Path | None,
    exemplars: Path | None,
    extractor: str | None,
    extractor_weights: Path | None,
    **flags: Any,
) -> None:
    check_target(source, target)
    others = {name: path for name, path in (("G", generator), ("D", discriminator)) if path is not None}
    published = read_published(source, others, {name: value for name, value in flags.items() if value is not None})
    stored = make_exemplars(published.shape, exemplars, extractor, extractor_weights)
    origin = {"file": source.name, "sha256": sha256(source), "licence": "that of the original weights"}
    recipe = Recipe(published.system, published.options_json, published.shape, {"converted_from": origin})
    try:
        save_snapshot(target, Snapshot(recipe, published.networks, stored, cur_nimg=0))
    except OSError as error:
        raise UserError(f"OUT={target} can't be written ({error}); name another file") from None
    described = ", ".join(f"{name} {value}" for name, value in asdict(published.shape).items())
    click.echo(f"{target}: {published.system}, {described}; {', '.join(published.networks)}; {len(stored)} exemplars")
    for note in published.notes:
        click.echo(f"note: {note}")
    click.echo(LICENCE)


def check_target(source: Path, target: Path) -> None:
    """Whether OUT can be a file, before anything large is read."""
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"OUT={target} can't be written: it is a folder, or its folder is not there; name a file")
    if source.exists() and target.exists() and source.samefile(target):
        raise UserError(f"OUT={target} is IN; name another file")


def read_published(source: Path, others: dict[str, Path], unseen: dict[str, Any]) -> Published:
    """The networks in a file, and in those beside it.

    Raises:
        UserError: a file that is none, that is refused, or flags that it leaves no room for.
    """
    try:
        if is_pickle(source):
            if others or unseen:
                flag = next(iter([*({"G": "generator", "D": "discriminator"}[name] for name in others), *unseen]))
                raise UserError(
                    f"--{flag.replace('_', '-')}: {source} is a pickle, which says that itself; leave it out"
                )
            return from_pickle(source)
        return from_state_dict(source, others, replace(Unseen(), **unseen))
    except Refusal as refusal:
        raise UserError(f"{source} {refusal}; nothing was converted") from None


def make_exemplars(shape: DataShape, path: Path | None, extractor: str | None, weights: Path | None) -> Exemplars:
    """The instances to store beside the weights, and what makes more of them.

    Raises:
        UserError: a file that is refused, flags for a model without instances, an extractor of another width.
    """
    given = {"--exemplars": path, "--extractor": extractor, "--extractor-weights": weights}
    unwanted = next((flag for flag, value in given.items() if value is not None), None)
    if unwanted is not None and not shape.h_dim:
        raise UserError(f"{unwanted}={given[unwanted]}: this model is not conditioned on instances; leave it out")
    if weights is not None and extractor is None:
        raise UserError(f"--extractor-weights={weights}: say of which network: --extractor=swav, for example")
    description = {} if extractor is None else describe_extractor(extractor, weights, shape.h_dim)
    if path is not None:
        try:
            stored = read_exemplars(path, shape)
        except Refusal as refusal:
            raise UserError(f"--exemplars={path} {refusal}; nothing was converted") from None
        return replace(stored, extractor=description or stored.extractor)
    rows = 0 if shape.h_dim else min(shape.c_dim, MOST_CLASSES)
    if shape.h_dim and not description:
        description = {"name": "file", "h_dim": shape.h_dim, "file": "that the model was trained with", "mirror": False}
    condition = Condition(torch.eye(rows, shape.c_dim), torch.zeros(rows, shape.h_dim))
    names = [f"class {row}" for row in range(rows)]
    return Exemplars(condition, torch.zeros(0, shape.img_channels, 1, 1, dtype=torch.uint8), names, description)


def describe_extractor(name: str, weights: Path | None, h_dim: int) -> dict[str, Any]:
    """The description of a network of features, as an instance store would have it.

    IC-GAN cut its images to squares at the centre and resized them to the resolution of training first.
    """
    check_extractor_name(name)
    if name in NO_NETWORK:
        networks = ", ".join(there for there in EXTRACTORS if there not in NO_NETWORK)
        raise UserError(f"--extractor={name} is no network; expected one of {networks}, or timm:NAME")
    description = NetworkExtractor.make(canonical_name(name), weights, pick_device("cpu")).description
    if description["h_dim"] != h_dim:
        raise UserError(f"--extractor={name} makes features {description['h_dim']} wide, the model takes {h_dim}")
    return description | {"images": {"transform": "center-crop", "filter": "bilinear"}}


if __name__ == "__main__":
    sys.exit(main())
