"""The story of a run: from a batch of real images to a snapshot on disk."""

import time
from pathlib import Path
from typing import Any

import torch

from torch_utils import training_stats
from training.augment import Augmentation
from training.checkpoint import Recipe, Snapshot, restore_state, save_snapshot, save_state
from training.condition import Condition
from training.config import LoopOptions
from training.dataset import SampleSource
from training.ema import Ema
from training.loading import fake_draws, make_loader
from training.preview import Preview
from training.progress import Progress, memory_gb, tick_line
from training.randomness import seed_everything
from training.run_folder import write_options
from training.sampling import from_uint8
from training.step import Step
from training.stopping import StopRequest
from training.system import System

STATE_EVERY_SEC = 600.0  # between two snapshots a state is saved at the first tick after this: what a crash may cost


def training_loop(
    run: Path,  # where everything is written
    recipe: Recipe,  # what the snapshots say they are
    system: System,
    source: SampleSource,
    loop: LoopOptions,
    device: torch.device,
    augment: Augmentation,
    workers: int = 0,
    num_exemplars: int = 1000,
    resume_from: dict[str, Any] | None = None,  # what read_state gave
) -> str:
    """Train until `loop.kimg`, a signal or the time limit.

    Everything random in a step is a function of (seed, images seen), so a resumed run draws what the uninterrupted one
    would have drawn.

    Returns:
        why it ended: 'done', 'time limit', 'SIGINT' or 'SIGTERM'.

    Raises:
        UserError: a state that does not fit.
        OSError: a disk that is full, a file that vanished. What was written before is whole.
    """
    # Give everything that has a memory a name.
    for network in system.networks.values():
        network.to(device).train()
    ema = Ema(system.networks["G"], loop.ema_kimg, loop.ema_rampup or None, loop.ema_start, system.average_buffers)
    collector = training_stats.Collector()
    members = system.stateful() | augment.to(device).stateful() | {"G_ema": ema, "stats": collector}

    # Pick up where the last state left off.
    cur_nimg, num_steps, total_sec = 0, 0, 0.0
    if resume_from is not None:
        at = restore_state(resume_from, members)
        cur_nimg, num_steps, total_sec = at["cur_nimg"], at["num_steps"], at["total_sec"]

    write_options(run, recipe.training_options)

    loader = make_loader(source, loop.seed, cur_nimg, loop.batch, workers, pin_memory=device.type == "cuda")
    tick_nimg = max(int(loop.tick * 1000), 1)
    batch_gpu = loop.batch_gpu or loop.batch
    preview = Preview(source, system.networks["G"].z_dim)
    exemplars = None
    tick_start, tick_start_nimg = time.monotonic(), cur_nimg
    last_state = tick_start

    with Progress(run, loop.kimg, cur_nimg) as progress, StopRequest(loop.minutes) as stop:
        progress.say(f"{'Continuing at' if resume_from else 'Training from'} {cur_nimg / 1000:.1f} kimg in {run}")
        if resume_from is None:
            preview.save_reals(run / "reals.png")
            preview.save_fakes(run / "fakes000000.png", ema.average)

        end = None if cur_nimg < loop.kimg * 1000 else "done"
        while end is None:
            # Fetch real images.
            seed_everything(loop.seed, cur_nimg)
            sample = next(loader)
            real = from_uint8(sample.image.to(device, non_blocking=True))
            real_cond = Condition(sample.c, sample.h).to(device)

            # Run the phases that are due, in rounds of what fits the device.
            for number, phase in enumerate(system.phases):
                if num_steps % phase.interval:
                    continue
                draws = fake_draws(len(source), loop.seed, number, cur_nimg, loop.batch)
                gen_cond = source.conditions(draws).to(device)
                z = torch.randn(loop.batch, system.networks["G"].z_dim, device=device)
                parts = zip(*(rows.split(batch_gpu) for rows in (real, real_cond, z, gen_cond)), strict=True)
                rounds = [Step(system.networks, *part, augment, augment.observe) for part in parts]
                system.run(phase, rounds)

            # Move the average generator, and the strength of the augmentation.
            augment.end_step(loop.batch)
            cur_nimg, num_steps = cur_nimg + loop.batch, num_steps + 1
            ema.update(system.networks["G"], cur_nimg, loop.batch)
            progress.advance(cur_nimg)

            # Decide whether this step ends a tick, or the run.
            end = "done" if cur_nimg >= loop.kimg * 1000 else stop.reason
            ticked = cur_nimg // tick_nimg > (cur_nimg - loop.batch) // tick_nimg
            if not ticked and end is None:
                continue
            now = time.monotonic()
            tick_sec, total_sec = now - tick_start, total_sec + now - tick_start

            # Report the tick. An interrupted tick is not reported: its figures travel in the state.
            if ticked or end == "done":
                training_stats.report("Progress/tick", cur_nimg // tick_nimg)
                training_stats.report("Progress/kimg", cur_nimg / 1000)
                augment.report()
                training_stats.report("Timing/sec_per_tick", tick_sec)
                training_stats.report("Timing/sec_per_kimg", tick_sec / (cur_nimg - tick_start_nimg) * 1000)
                training_stats.report("Timing/total_sec", total_sec)
                training_stats.report("Resources/memory_gb", memory_gb(device))
                stats = collector.collect()
                progress.record(stats, cur_nimg)
                progress.say(tick_line(stats))

            # Save: a sheet and a snapshot for people, a state for the next start.
            kimg = f"{cur_nimg // 1000:06d}"
            due = end is not None or cur_nimg // tick_nimg % loop.snap == 0
            if due:
                if exemplars is None:
                    exemplars = source.exemplars(num_exemplars)
                networks = {name: network.state_dict() for name, network in system.networks.items()}
                snapshot = Snapshot(recipe, networks | {"G_ema": ema.state_dict()}, exemplars, cur_nimg)
                preview.save_fakes(run / f"fakes{kimg}.png", ema.average)
                save_snapshot(run / f"network-snapshot-{kimg}.pt", snapshot)
            if due or now - last_state > STATE_EVERY_SEC:
                at = {"cur_nimg": cur_nimg, "num_steps": num_steps, "total_sec": total_sec}
                save_state(run / f"training-state-{kimg}.pt", members, at)
                last_state = now
            tick_start, tick_start_nimg = time.monotonic(), cur_nimg

        progress.say(f"Ended at {cur_nimg / 1000:.1f} of {loop.kimg:g} kimg ({end}); everything is saved in {run}")
    return end
