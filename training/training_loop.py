"""The story of a run: from a batch of real images to a snapshot on disk."""

import time
from pathlib import Path
from typing import Any

import torch

from torch_utils import training_stats
from torch_utils.distributed import highest
from training.agreement import check_equal_weights
from training.augment import Augmentation
from training.checkpoint import Recipe, restore_state
from training.config import LoopOptions
from training.dataset import SampleSource
from training.ema import Ema
from training.loading import make_loader
from training.progress import Progress, host_memory_gb, memory_gb
from training.randomness import seed_everything
from training.rounds import Rounds
from training.run_folder import write_options
from training.sampling import from_uint8
from training.saving import Measure, Saver
from training.stopping import StopRequest
from training.system import System
from training.ticks import Ticks

STATE_EVERY_SEC = 600.0  # between two snapshots a state is saved at the first tick after this: what a crash may cost
LOOK_EVERY = 32  # steps between two looks at the guard's counters on a GPU, which wait for it
REASONS = (None, "time limit", "SIGINT", "SIGTERM")  # to stop before the end; of several processes the last one wins


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
    measure: Measure | None = None,  # takes the metrics of a snapshot
) -> str:
    """Train until `loop.kimg`, a signal, the time limit, or until metrics have not improved for `loop.patience`.

    Everything random in a step is a function of (seed, images seen), so a resumed run draws what the uninterrupted one
    would have drawn. Of several processes each does its share of every batch; they hold equal weights.

    Returns:
        why it ended: 'done', 'no improvement', 'time limit', 'SIGINT' or 'SIGTERM'.

    Raises:
        UserError: a state that does not fit, gradients or weights that are not finite.
        Departed: another process has left.
        OSError: a disk that is full, a file that vanished. What was written before is whole.
    """
    # Give everything that has a memory a name.
    for network in system.networks.values():
        network.to(device).train()
    ema = Ema(system.networks["G"], loop.ema_kimg, loop.ema_rampup or None, loop.ema_start, system.average_buffers)
    collector = training_stats.Collector()
    members = system.stateful() | augment.to(device).stateful() | source.stateful()
    members |= {"G_ema": ema, "stats": collector}

    # Pick up where the last state left off.
    cur_nimg, num_steps, total_sec = 0, 0, 0.0
    if resume_from is not None:
        at = restore_state(resume_from, members)
        cur_nimg, num_steps, total_sec = at["cur_nimg"], at["num_steps"], at["total_sec"]

    write_options(run, recipe.training_options)

    rounds = Rounds(system, source, loop, augment, device)
    on_gpu = device.type == "cuda"
    loader = make_loader(source, loop.seed, cur_nimg, loop.batch, workers, pin_memory=on_gpu, rows=rounds.share.rows)
    saver = Saver(run, recipe, system, ema, source, num_exemplars, loop, measure)
    ticks = Ticks.of(loop)
    tick_start, tick_start_nimg = time.monotonic(), cur_nimg
    last_state = tick_start

    with Progress(run, loop.kimg, cur_nimg, loop.wandb) as progress, StopRequest(loop.minutes) as stop:
        progress.say(f"{'Continuing at' if resume_from else 'Training from'} {cur_nimg / 1000:.1f} kimg in {run}")
        if resume_from is None:
            saver.first_sheets()

        end = None if cur_nimg < loop.kimg * 1000 else "done"
        if resume_from is not None and (ticks.has_snapshot(cur_nimg) or end == "done") and not saver.measured(cur_nimg):
            end = saver.measure(ticks.snapshots_before(cur_nimg), cur_nimg, progress) or end
        while end is None:
            # Fetch real images.
            source.refresh(num_steps, system.networks)
            seed_everything(loop.seed, cur_nimg)
            sample = next(loader)
            real = from_uint8(sample.image.to(device, non_blocking=True))
            real_cond = source.condition(sample).to(device)

            # Run the phases that are due, in rounds of what fits the device.
            for number, phase in enumerate(system.phases):
                if phase.due(num_steps):
                    system.run(phase, rounds.of(number, real, real_cond, cur_nimg))

            # Move the average generator, and the strength of the augmentation.
            system.merge_buffers()
            augment.end_step(loop.batch)
            cur_nimg, num_steps = cur_nimg + loop.batch, num_steps + 1
            ema.update(system.networks["G"], cur_nimg, loop.batch)
            progress.advance(cur_nimg)

            # Decide whether this step ends a tick, or the run.
            reason = REASONS[highest(REASONS.index(stop.reason))]
            end = "done" if cur_nimg >= loop.kimg * 1000 else reason
            ticked = ticks.ended(cur_nimg)
            if ticked or not on_gpu or num_steps % LOOK_EVERY == 0:
                system.guard.check(loop.max_bad_steps)
            if not ticked and end is None:
                continue
            check_equal_weights(system.networks)
            now = time.monotonic()
            tick_sec, total_sec = now - tick_start, total_sec + now - tick_start
            regular = ticks.has_snapshot(cur_nimg)
            due = regular or end is not None
            if due:
                saver.sheet(cur_nimg, regular or end == "done")

            # Name images that are lost: without them the data would be other data when the run is continued.
            bad_images = source.bad_images()
            progress.say_bad_images(bad_images)

            # Report the tick. An interrupted tick is not reported: its figures travel in the state.
            if ticked or end == "done":
                training_stats.report("Progress/tick", ticks.place(cur_nimg))
                training_stats.report("Progress/kimg", cur_nimg / 1000)
                augment.report()
                training_stats.report("Data/bad_images", len(bad_images))
                training_stats.report("Timing/sec_per_tick", tick_sec)
                training_stats.report("Timing/sec_per_kimg", tick_sec / (cur_nimg - tick_start_nimg) * 1000)
                training_stats.report("Timing/images_per_sec", (cur_nimg - tick_start_nimg) / max(tick_sec, 1e-9))
                training_stats.report("Timing/total_sec", total_sec)
                training_stats.report("Resources/memory_gb", memory_gb(device))
                training_stats.report("Resources/host_memory_gb", host_memory_gb())
                collector.merge()
                progress.tick(collector.collect(), cur_nimg)

            # Save: a snapshot for people, a state for the next start.
            if due:
                saver.snapshot(cur_nimg)
            if highest(due or now - last_state > STATE_EVERY_SEC):
                collector.merge()
                augment.merge()
                saver.state(members, {"cur_nimg": cur_nimg, "num_steps": num_steps, "total_sec": total_sec})
                last_state = now
            if regular or end == "done":  # who interrupts a run does not want to wait
                end = saver.measure(ticks.snapshots_before(cur_nimg), cur_nimg, progress) or end
            if due:
                saver.tidy()
            tick_start, tick_start_nimg = time.monotonic(), cur_nimg

        progress.say(f"Ended at {cur_nimg / 1000:.1f} of {loop.kimg:g} kimg ({end}); everything is saved in {run}")
    return end
