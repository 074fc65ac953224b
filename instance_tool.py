"""Make, judge and pick from instances: the features and neighbours that instance-conditional models train on.

\b
    python instance_tool.py make --data=photos.zip --k=50
    torchrun --nproc-per-node=8 instance_tool.py make --data=imagenet.zip --extractor=resnet50 --feature-dtype=float16
    python instance_tool.py report --data=photos.zip
    python instance_tool.py select --data=photos.zip --count=1000 --dest=exemplars.npz

train.py makes what is missing by itself; this is for large data, several processes or machines, and for a look at
features before a model is trained on them. What was killed goes on where it stopped: give the same command again.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from stylegan2_icgan.feature_quality import quality, quality_lines
from stylegan2_icgan.making import StoreOptions, ensure_store
from stylegan2_icgan.ray_engine import ray_engine
from stylegan2_icgan.selection import HOW, select
from stylegan2_icgan.shards import SHARD_ROWS, run_in_ranks
from stylegan2_icgan.sources import open_dataset
from stylegan2_icgan.store import InstanceStore, default_folder, open_store
from torch_utils import distributed
from torch_utils.command_line import Command, Group, NearestChoice, UserError, dataclass_options
from torch_utils.files import atomic_write, format_time
from torch_utils.misc import keep_large_buffers, pick_device
from training.config import from_json
from training.dataset import ImageFolderDataset

PATH = click.Path(path_type=Path)


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which images: as for train.py."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the subset."),
        click.option("--subset", type=int, help="Of this many random images only, as train.py --subset.", metavar="N"),
        click.option("--data", default="", help="Zip or folder made by dataset_tool.py.", metavar="ZIP"),
    ):
        function = option(function)
    return function


@click.group(cls=Group, help=__doc__)
def main() -> None:
    keep_large_buffers()


@main.command(cls=Command)
@data_options
@dataclass_options(StoreOptions)
@click.option("--device", type=NearestChoice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option(
    "--engine",
    type=NearestChoice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Who does the work: this process, or those of torchrun; or workers on a Ray cluster.",
)
@click.option(
    "--shard-rows",
    type=click.IntRange(min=1),
    default=SHARD_ROWS,
    show_default=True,
    help="Images a shard: what a kill may cost.",
    metavar="N",
)
@click.option("--ray-address", help="Of the cluster.  [default: RAY_ADDRESS, else this machine]", metavar="HOST:PORT")
@click.option("--ray-workers", type=click.IntRange(min=1), default=2, show_default=True, help="Workers.", metavar="N")
@click.option("--ray-gpus", type=click.FloatRange(min=0), default=0.0, show_default=True, help="GPUs of each worker.")
def make(
    data: str,
    subset: int | None,
    seed: int,
    device: str,
    engine: str,
    shard_rows: int,
    ray_address: str | None,
    ray_workers: int,
    ray_gpus: float,
    **flags: Any,
) -> None:
    """Make features of all images and of their mirror images, and the k nearest neighbours of each."""
    options = from_json(StoreOptions, {name: value for name, value in flags.items() if value is not None}, "options")
    dataset = open_dataset(data, "none", subset, seed)
    start_time = time.monotonic()
    chosen = pick_device(device)
    if engine == "ray" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--engine=ray under torchrun would start a cluster for each process; use one of them")
    with distributed.together():
        if chosen.type == "cuda":
            chosen = torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
        work_with = ray_engine(ray_address, ray_workers, ray_gpus) if engine == "ray" else run_in_ranks
        store = ensure_store(dataset, options, chosen, click.echo, work_with, shard_rows)
        if distributed.rank() == 0:
            for line in description_of(store):
                click.echo(line)
            click.echo(f"Done after {format_time(time.monotonic() - start_time)}.")


@main.command(cls=Command)
@data_options
@click.option("--instances", type=PATH, help="Folder of the store.  [default: beside the data]", metavar="DIR")
@click.option("--json", "json_file", type=PATH, help="Write the figures to this file, too.", metavar="FILE")
def report(data: str, subset: int | None, seed: int, instances: Path | None, json_file: Path | None) -> None:
    """Say how good the features are, without training: agreement with labels, hubs, duplicates; and check the files."""
    dataset, store = stored(data, subset, seed, instances)
    store.verify()
    figures = quality(
        store.features,
        store.neighbours,
        store.radii,
        dataset.class_ids,
        dataset.checksums,
    )
    for line in [*description_of(store), *quality_lines(figures, dataset.names)]:
        click.echo(line)
    if json_file is not None:
        with atomic_write(json_file) as file:
            file.write((json.dumps({"manifest": store.manifest, "quality": figures}, indent=2) + "\n").encode())


@main.command(cls=Command, name="select")
@data_options
@click.option("--instances", type=PATH, help="Folder of the store.  [default: beside the data]", metavar="DIR")
@click.option("--how", type=NearestChoice(HOW), default="kmeans", show_default=True, help="See above.")
@click.option("--count", type=click.IntRange(min=1), default=1000, show_default=True, help="How many.", metavar="N")
@click.option("--dest", type=PATH, required=True, help="What to write.", metavar="NPZ")
@click.option("--overwrite", is_flag=True, help="Replace --dest if it exists.")
def select_command(
    data: str,
    subset: int | None,
    seed: int,
    instances: Path | None,
    how: str,
    count: int,
    dest: Path,
    overwrite: bool,
) -> None:
    """Pick instances that stand for all, for generate.py --instance-feats.

    \b
    --how:
      kmeans     the nearest instance to each of --count centres of k-means
      per-class  the same within each class, --count instances a class
      random     --count instances at random
    """
    if dest.suffix != ".npz":
        raise UserError(f"--dest={dest} does not end in .npz; expected for example {dest}.npz")
    if dest.exists() and not overwrite:
        raise UserError(f"--dest={dest} exists; give another name, or --overwrite to replace it")
    dataset, store = stored(data, subset, seed, instances)
    if how == "per-class" and dataset.class_ids is None:
        raise UserError(f"--how=per-class, but --data={dataset.path} has no classes; use --how=kmeans")
    rows = select(store.features, how, count, dataset.class_ids, seed)
    arrays = {
        "features": np.array(store.features[rows], dtype=np.float32),
        "names": np.array([dataset.names[row] for row in rows]),
        "rows": rows,
    }
    if dataset.class_ids is not None:
        arrays["classes"] = dataset.class_ids[rows]
    with atomic_write(dest) as file:
        np.savez(file, **arrays)
    click.echo(f"Wrote {dest}: {len(rows):,} of {len(dataset):,} instances, {how}.")


def stored(
    data: str, subset: int | None, seed: int, instances: Path | None
) -> tuple[ImageFolderDataset, InstanceStore]:
    """The images and their store, which must be there."""
    dataset = open_dataset(data, "none", subset, seed)
    folder = instances or default_folder(dataset)
    if not folder.exists():
        raise UserError(
            f"--data={dataset.path} has no instances at {folder} yet; make them with: python instance_tool.py make "
            f"--data={dataset.path}"
        )
    return dataset, open_store(folder, dataset)


def description_of(store: InstanceStore) -> list[str]:
    """What a store is, for a person."""
    manifest, found = store.manifest, store.manifest["neighbours"]
    return [
        f"{store.folder}: {manifest['num_images']:,} images, {manifest['dtype']} features by "
        f"{manifest['extractor']['name']}, {store.h_dim} wide",
        f"neighbours: {store.k} each, found by {found['method']}, recall {found['recall']:.4f} on a sample",
    ]


if __name__ == "__main__":
    sys.exit(main())
