"""What a run will take, measured on one small round instead of guessed."""

import time
from collections.abc import Callable

import torch

from torch_utils.misc import parameter_bytes
from training.condition import Condition
from training.config import LoopOptions
from training.dataset import SampleSource
from training.loading import fake_draws, real_draws
from training.sampling import from_uint8
from training.step import Step
from training.system import Phase, System

PROBE = 4  # images in the measured round


def estimate(
    system: System,
    source: SampleSource,
    loop: LoopOptions,
    device: torch.device,
    augment: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[float, float]:
    """Run every phase once on a few images.

    Returns:
        memory in GiB: weights, gradients, Adam's two moments, the average generator, and what one round keeps for its
        backward pass; and seconds per thousand images.
    """
    for network in system.networks.values():
        network.to(device).train()
    batch_gpu = loop.batch_gpu or loop.batch
    rows = min(PROBE, batch_gpu)
    sample = source[real_draws(len(source), 0, 0, rows)]
    step = Step(
        system.networks,
        from_uint8(sample.image.to(device)),
        Condition(sample.c, sample.h).to(device),
        torch.randn(rows, system.networks["G"].z_dim, device=device),
        source.conditions(fake_draws(len(source), 0, 0, 0, rows)).to(device),
        augment,
    )
    seconds_per_image, largest = 0.0, 0
    for phase in system.phases:
        system.run(phase, [step])  # the first run of a phase pays for allocations and kernel choices
        _wait(device)
        start = time.monotonic()
        kept = _bytes_kept(system, phase, step)
        _wait(device)
        seconds_per_image += (time.monotonic() - start) / rows / phase.interval
        largest = max(largest, kept)
    weights = parameter_bytes(system.networks)
    memory = 4 * weights + parameter_bytes({"G_ema": system.networks["G"]}) + largest * batch_gpu / rows
    return memory / 2**30, seconds_per_image * 1000


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
