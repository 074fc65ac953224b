"""Train a GAN on a zip or folder of images, conditioned on nothing, classes, instances or both.

\b
    python train.py --cond=instance --data=datasets/digits.zip --cfg=tiny
    python train.py --resume=latest
"""

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch

from stylegan2_icgan.models import make_system
from stylegan2_icgan.options import InstanceOptions, TrainingOptions, resolve, restore
from stylegan2_icgan.presets import PRESETS
from stylegan2_icgan.sources import make_source, open_dataset
from stylegan2_icgan.systems import model_flags
from torch_utils.command_line import Command, NearestChoice, UserError, dataclass_options
from torch_utils.files import format_time
from torch_utils.misc import keep_large_buffers, module_table, pick_device
from training.augment import Augmentation, AugmentOptions
from training.checkpoint import Recipe, read_state
from training.config import DataOptions, LoopOptions
from training.dataset import ImageFolderDataset
from training.estimate import estimate
from training.run_folder import (
    OPTIONS_FILE,
    check_writable,
    find_run,
    new_run_folder,
    read_options,
    remove_leftovers,
    states_in,
)
from training.system import DataShape
from training.training_loop import training_loop

EXIT_CODES = {"done": 0, "time limit": 0, "SIGINT": 130, "SIGTERM": 143}


@click.command(cls=Command, help=__doc__)
@click.option("--outdir", type=Path, default=Path("runs"), show_default=True, help="Folder of runs.", metavar="DIR")
@click.option("--cfg", type=NearestChoice(list(PRESETS)), help="Preset; flags override it.  [default: auto]")
@click.option("--resume", help="Continue a run: its folder, one of its states, or 'latest'.", metavar="RUN")
@click.option("-n", "--dry-run", is_flag=True, help="Print options, networks, memory and time; train nothing.")
@dataclass_options(DataOptions, InstanceOptions, LoopOptions, AugmentOptions, model_flags())
def main(outdir: Path, cfg: str | None, resume: str | None, dry_run: bool, **flags: Any) -> int:
    keep_large_buffers()
    run = state = None
    if resume is None:
        check_writable(outdir)
        dataset = open_dataset(flags["data"], flags["cond"] or "none", flags["subset"], flags["seed"] or 0)
        options = resolve(cfg or "auto", flags, dataset.resolution)
    else:
        run, newest = find_run(resume, outdir)
        options, dataset = options_of_run(run, cfg, flags)
        state = read_state(newest)
        remove_leftovers(run)

    if options.loop.threads is not None:
        torch.set_num_threads(options.loop.threads)
    device = pick_device(options.loop.device)
    source = make_source(options, dataset, device, say=print)
    shape = DataShape(source.resolution, source.num_channels, source.c_dim, source.h_dim)
    written = options.json() | {"dataset": {"num_images": len(dataset), "fingerprint": dataset.fingerprint()}}
    recipe = Recipe(options.system, written["model"], shape, written)
    system = make_system(recipe, options.loop.seed)
    augment = Augmentation(options.augment, options.data.mirror).to(device)

    if dry_run:
        click.echo(json.dumps(written, indent=2))
        for name, network in system.networks.items():
            click.echo("\n".join(["", *module_table(name, network)]))
        memory, sec_per_kimg = estimate(system, source, options.loop, device, augment)
        click.echo(
            f"\nEstimated from one round on {device}: {memory:.2f} GiB; {sec_per_kimg:.1f} s a thousand images, "
            f"{format_time(sec_per_kimg * options.loop.kimg)} for --kimg={options.loop.kimg:g}"
        )
        return 0

    if run is None:
        run = new_run_folder(outdir, f"{source.name}-{options.data.cond}-{options.cfg}-batch{options.loop.batch}")
    try:
        end = training_loop(
            run=run,
            recipe=recipe,
            system=system,
            source=source,
            loop=options.loop,
            device=device,
            augment=augment,
            workers=default_workers(options, dataset),
            num_exemplars=options.instances.instances_per_class or options.instances.exemplars,
            resume_from=state,
        )
    except OSError as error:
        remedy = f"continue with --resume={run}" if states_in(run) else "start again"
        raise UserError(f"{run}: {error}; what was written before is whole. Mend that and {remedy}") from None
    if end != "done":
        click.echo(f"Continue with: python train.py --resume={run}")
    return EXIT_CODES[end]


def options_of_run(run: Path, cfg: str | None, flags: dict[str, Any]) -> tuple[TrainingOptions, ImageFolderDataset]:
    """The options and data of a run that is continued; refuses other data than it was started with."""
    if cfg is not None:
        raise UserError(f"--cfg={cfg} given with --resume; a run continues with its own options, leave --cfg out")
    stored = read_options(run)
    options = restore(stored, flags, str(run / OPTIONS_FILE))
    dataset = open_dataset(options.data.data, options.data.cond, options.data.subset, options.loop.seed)
    expected = stored.get("dataset", {})
    if dataset.fingerprint() != expected.get("fingerprint"):
        raise UserError(
            f"--data={dataset.path} ({len(dataset)} images) is not what {run} was trained on "
            f"({expected.get('num_images')} images): file names or contents differ. Give that data with --data, or "
            "start a new run"
        )
    return options, dataset


def default_workers(options: TrainingOptions, dataset: ImageFolderDataset) -> int:
    """0 when images are in memory: fetching them is cheaper than asking another process."""
    if options.data.workers is not None:
        return options.data.workers
    return 0 if dataset.in_memory else 2


if __name__ == "__main__":
    sys.exit(main())
