"""What a run will take, measured on a round instead of guessed."""

import time
from collections.abc import Callable

import torch

from torch_utils.misc import parameter_bytes
from training.config import LoopOptions
from training.dataset import SampleSource
from training.loading import fake_draws, real_draws
from training.progress import memory_gb
from training.sampling import from_uint8
from training.step import Step
from training.system import Phase, System

FEW, PATIENCE_SEC = 4, 5.0  # a first look at a few images; the whole round is run when that promises to be this quick


STEPS = range(10_000, 12_000)  # how often a phase runs is counted here, beyond any beginning


def estimate(
    system: System,
    source: SampleSource,
    loop: LoopOptions,
    device: torch.device,
    augment: Callable[[torch.Tensor], torch.Tensor],
    processes: int = 1,
) -> tuple[float, float]:
    """Run every phase on a few images, then on a whole round if there is time for it.

    Args:
        processes: that will share each batch, at the speed of this one.

    Returns:
        memory of a process in GiB: what it has now (CPU only), weights, gradients, Adam's two moments, the average
        generator, and what one round keeps for its backward pass; and seconds per thousand images of all processes.
    """
    for network in system.networks.values():
        network.to(device).train()
    source.refresh(0, system.networks)
    batch_gpu = loop.batch_gpu or loop.batch // processes
    rows = min(FEW, batch_gpu)
    seconds, kept = _measure(system, source, rows, device, augment)
    if seconds * batch_gpu / rows < PATIENCE_SEC:
        rows = batch_gpu
        seconds, kept = _measure(system, source, rows, device, augment)
    weights = 4 * parameter_bytes(system.networks) + parameter_bytes({"G_ema": system.networks["G"]})
    process = memory_gb(device) if device.type == "cpu" else 0.0
    return process + (weights + kept * batch_gpu / rows) / 2**30, seconds / rows * 1000 / processes


def _measure(
    system: System,
    source: SampleSource,
    rows: int,
    device: torch.device,
    augment: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[float, int]:
    """Seconds of a training step of `rows` images, phases weighted by how often they run; bytes kept for backward."""
    sample = source[real_draws(len(source), 0, 0, rows)]
    step = Step(
        system.networks,
        from_uint8(sample.image.to(device)),
        source.condition(sample).to(device),
        torch.randn(rows, system.networks["G"].z_dim, device=device),
        source.conditions(fake_draws(len(source), 0, 0, 0, rows)).to(device),
        augment,
    )
    seconds, largest = 0.0, 0
    for phase in system.phases:
        largest = max(largest, _bytes_kept(system, phase, step))  # also pays for allocations and kernel choices
        _wait(device)
        start = time.monotonic()
        system.run(phase, [step])
        _wait(device)
        seconds += (time.monotonic() - start) * sum(map(phase.due, STEPS)) / len(STEPS)
    return seconds, largest


def _bytes_kept(system: System, phase: Phase, step: Step) -> int:
    """Run a phase; the most bytes any of its terms keeps for its backward pass."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        system.run(phase, [step])
    return sum(seen.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
