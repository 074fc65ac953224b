"""Train a GAN on a zip or folder of images, conditioned on nothing, classes, instances or both.

\b
    python train.py --cond=instance --data=datasets/digits.zip --cfg=tiny
    python train.py --resume=latest
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from stylegan2_icgan.evaluation.during import make_measure
from stylegan2_icgan.models import make_system
from stylegan2_icgan.options import InstanceOptions, TrainingOptions, check_system, resolve, restore
from stylegan2_icgan.preflight import check_run
from stylegan2_icgan.presets import PRESETS
from stylegan2_icgan.sources import make_source, open_dataset
from stylegan2_icgan.systems import SYSTEMS, model_flags
from torch_utils import custom_ops
from torch_utils.command_line import Command, NearestChoice, UserError, dataclass_options
from torch_utils.distributed import Departed, first, launched, own_device, rank, together
from torch_utils.files import format_time
from torch_utils.launch import relaunch
from torch_utils.misc import keep_large_buffers, module_table, pick_device
from torch_utils.precision import LOW_DTYPES, is_fast, set_math
from training.augment import Augmentation, AugmentOptions
from training.bad_images import remembered
from training.checkpoint import Recipe, Snapshot, load_snapshot, read_state
from training.config import DataOptions, LoopOptions, check_bounds
from training.dataset import ImageFolderDataset
from training.estimate import estimate
from training.graphs import check_graphs, record
from training.mixed_precision import Precision
from training.run_folder import (
    OPTIONS_FILE,
    alone,
    check_writable,
    find_run,
    new_run_folder,
    read_options,
    remove_leftovers,
    states_in,
)
from training.system import DataShape, System
from training.training_loop import training_loop
from training.transfer import first_layers, start_from

EXIT_CODES = {"done": 0, "no improvement": 0, "time limit": 0, "SIGINT": 130, "SIGTERM": 143}


@click.command(cls=Command, help=__doc__)
@click.option("--outdir", type=Path, default=Path("runs"), show_default=True, help="Folder of runs.", metavar="DIR")
@click.option("--cfg", type=NearestChoice(list(PRESETS)), help="Preset; flags override it.  [default: auto]")
@click.option(
    "--resume",
    help="Continue a run: its folder, one of its states, or 'latest'. --patience=none takes that back, and so on.",
    metavar="RUN",
)
@click.option("--fp32", is_flag=True, help="The same as --precision=fp32.")
@click.option("--gpus", type=click.IntRange(1), help="Processes on this machine, a GPU each.", metavar="N")
@click.option("-n", "--dry-run", is_flag=True, help="Print options, networks, memory and time; train nothing.")
@dataclass_options(DataOptions, InstanceOptions, LoopOptions, AugmentOptions, model_flags())
def main(
    outdir: Path, cfg: str | None, resume: str | None, fp32: bool, gpus: int | None, dry_run: bool, **flags: Any
) -> int:
    keep_large_buffers()
    to_start = gpus or 1 if launched()[1] == 1 else 1
    processes = max(to_start, launched()[1])
    if fp32 and flags["precision"] not in (None, "fp32"):
        raise UserError(f"--fp32 and --precision={flags['precision']} both given; expected one of them")
    flags["precision"] = "fp32" if fp32 else flags["precision"]

    # What is wrong with the flags is said before processes wait for each other.
    newest = None
    if resume is None:
        check_writable(outdir)
        check_bounds(LoopOptions(seed=flags["seed"] or 0))  # which --subset is drawn by
        dataset = open_dataset(flags["data"], flags["cond"] or "none", flags["subset"], flags["seed"] or 0)
        options = resolve(cfg or "auto", flags, dataset.resolution, processes)
    else:
        run, newest = find_run(resume, outdir)
        options, dataset = options_of_run(run, cfg, flags, processes)
    loaded = None
    if options.loop.init_from is not None and resume is None:
        loaded = load_snapshot(options.loop.init_from, "--init-from")
    if options.loop.threads is not None:
        torch.set_num_threads(options.loop.threads)
    device = pick_device(options.loop.device)
    if options.loop.graphs:
        check_graphs(options.system, SYSTEMS[options.system], device)
    if to_start > 1 and device.type == "cuda" and to_start > torch.cuda.device_count():
        raise UserError(f"--gpus={to_start}: there are {torch.cuda.device_count()} on this machine; expected no more")
    check_run(options, dataset, loaded, device, new=resume is None)
    state = None if newest is None else read_state(newest)
    if to_start > 1 and not dry_run:
        del loaded, state  # they may be large, and are for those that train
        return relaunch(Path(__file__), to_start)

    with together(), contextlib.ExitStack() as held:
        device = own_device(device)
        set_math(options.loop.tf32, options.loop.cudnn_benchmark)
        custom_ops.set_mode(options.loop.ops)
        used = custom_ops.prepare(device)
        say = click.echo if rank() == 0 else lambda line: None
        low = LOW_DTYPES.get(options.loop.precision)
        if low is not None and not is_fast(low, device):
            say(f"--precision={options.loop.precision} is slow here: this {device.type} computes faster with --fp32")
        source = make_source(options, dataset, device, say)
        shape = DataShape(source.resolution, source.num_channels, source.c_dim, source.h_dim)
        about = {"num_images": len(dataset), "fingerprint": dataset.fingerprint()}
        written = options.json() | {"dataset": about, "ops": used}
        recipe = Recipe(options.system, written["model"], shape, written)
        system = make_system(recipe, options.loop.seed)
        if SYSTEMS[options.system].autocasts:
            system.precision = Precision(options.loop.precision)
        begin(system, options.loop, loaded, say)
        augment = Augmentation(options.augment, options.data.mirror).to(device)
        if dry_run:
            expected = estimate(system, source, options.loop, device, augment, processes)
            for line in description(written, system, *expected):
                click.echo(line)
            return 0

        if options.loop.graphs:
            record(system)
        measure = make_measure(options, recipe, system, dataset, device)
        if resume is None:
            dataset.tolerate(options.data.bad_images)
            name = f"{source.name}-{options.data.cond}-{options.cfg}-batch{options.loop.batch}"
            run = first(lambda: new_run_folder(outdir, name))
        try:
            first(lambda: held.enter_context(alone(run, newest)))
            first(lambda: remove_leftovers(run))
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
                measure=measure,
            )
        except OSError as error:
            raise UserError(f"{run}: {error}; what was written before is whole; {remedy(run)}") from None
        except Departed as error:
            raise UserError(f"{error}; {remedy(run)}") from None
        if end not in ("done", "no improvement"):
            say(f"Continue with: python train.py --resume={run}")
    return EXIT_CODES[end]


def begin(system: System, loop: LoopOptions, loaded: Snapshot | None, say: Callable[[str], None]) -> None:
    """Take over weights of --init-from, if they were loaded; freeze what --freeze-d says."""
    if loaded is not None:
        for report in start_from(str(loop.init_from), loaded, system.networks):
            for line in report.lines():
                say(line)
    if loop.freeze_d:
        system.frozen["D"] = first_layers(system.networks["D"], loop.freeze_d)


def remedy(run: Path) -> str:
    """What to do when a run was cut short from outside."""
    return f"mend that and {f'continue with --resume={run}' if states_in(run) else 'start again'}"


def description(written: dict[str, Any], system: System, memory: float, sec_per_kimg: float) -> list[str]:
    """What `--dry-run` prints."""
    loop = written["loop"]
    tables = [line for name, network in system.networks.items() for line in ["", *module_table(name, network)]]
    time = format_time(sec_per_kimg * loop["kimg"])
    return [
        json.dumps(written, indent=2),
        *tables,
        f"\nEstimated from one round: {memory:.2f} GiB; {sec_per_kimg:.1f} s a thousand images, {time} for "
        f"--kimg={loop['kimg']:g}",
    ]


def options_of_run(
    run: Path, cfg: str | None, flags: dict[str, Any], processes: int
) -> tuple[TrainingOptions, ImageFolderDataset]:
    """The options and data of a run that is continued; refuses other data than it was started with."""
    if cfg is not None:
        raise UserError(f"--cfg={cfg} given with --resume; a run continues with its own options, leave --cfg out")
    stored = read_options(run)
    options = restore(stored, flags, str(run / OPTIONS_FILE), processes)
    data = options.data
    dataset = open_dataset(data.data, data.cond, data.subset, options.loop.seed, remembered(run))
    dataset.tolerate(data.bad_images)
    expected = stored.get("dataset", {})
    if dataset.fingerprint() != expected.get("fingerprint"):
        raise UserError(
            f"--resume={run} --data={dataset.path}: these {len(dataset)} images are not the "
            f"{expected.get('num_images')} that the run was trained on: file names or contents differ. Give those with "
            "--data, or start a new run without --resume"
        )
    check_system(options, dataset.resolution, processes)
    return options, dataset


def default_workers(options: TrainingOptions, dataset: ImageFolderDataset) -> int:
    """0 when images are in memory: fetching them is cheaper than asking another process."""
    if options.data.workers is not None:
        return options.data.workers
    return 0 if dataset.in_memory else 2


if __name__ == "__main__":
    sys.exit(main())
