"""The passes of a phase as a CUDA graph: the host launches them once and replays them afterwards (--graphs)."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_utils import training_stats
from torch_utils.command_line import UserError
from training.condition import Condition
from training.step import Listener, Step, Term
from training.system import Phase, System, SystemKind

WARMUPS = 3  # passes before the recording: cuDNN chooses its algorithms, torch fills its caches
Work = Callable[[], None]


def cuda_recording(work: Work, pool: Any) -> Work:
    """Run the work, record it, and return what replays it. Tensors that it leaves are those of the replay, too."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # a recording wants its warm-up beside the default stream
        for _ in range(WARMUPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Loaders pin memory in a thread of their own, which a stricter mode would take for a part of the work.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay  # type: ignore[no-any-return]


RECORDERS: dict[str, Callable[[Work, Any], Work]] = {"cuda": cuda_recording}  # elsewhere work is done anew every time


class RecordedTerms:
    """The terms of a phase as one term, whose forward and backward passes are recorded at its first call.

    It gives the sum of the terms' means; `backward()` on that adds gradients which are known already. What terms tell
    the statistics, and others through the step, is told again at every replay. The recording works on copies of the
    step's tensors; whatever else it reads is read where it lay at the first call, what it decides on the host is
    decided once, and shapes must not change. Random numbers are those that the eager passes would draw.

    Args:
        phase: its terms, and the gain of their gradients.
        pool: of memory, shared by recordings that never run at once.
    """

    def __init__(self, phase: Phase, pool: Any) -> None:
        self.terms: Sequence[Term] = phase.terms
        self.trains, self.gain, self.pool = phase.trains, phase.gain, pool
        self.inputs: list[Tensor] = []
        self.replay: Work | None = None

    def __call__(self, step: Step) -> Tensor:
        if self.replay is None:
            self._begin(step)
        for static, tensor in zip(self.inputs, tensors_of(step), strict=True):
            static.copy_(tensor)
        assert self.replay is not None
        self.replay()
        for listener, tensor in self.told:
            listener(tensor.clone())
        loss: Tensor = _Known.apply(self.loss, self.gradients, *self.parameters)
        return loss

    def _begin(self, step: Step) -> None:
        self.parameters = [p for p in step.networks[self.trains].parameters() if p.requires_grad]
        self.inputs = [tensor.clone() for tensor in tensors_of(step)]
        real, c, h, z, gen_c, gen_h = self.inputs
        fixed = {"real": real, "real_cond": Condition(c, h), "z": z, "gen_cond": Condition(gen_c, gen_h)}

        def tell(listener: Listener, tensor: Tensor) -> None:
            self.told.append((listener, tensor.detach()))

        def work() -> None:
            self.told: list[tuple[Listener, Tensor]] = []
            with training_stats.told_to(lambda name, moments: tell(partial(training_stats.add, name), moments)):
                self._passes(dataclasses.replace(step, **fixed, observe=partial(tell, step.observe), tell=tell))

        self.replay, device = work, step.real.device
        if device.type in RECORDERS:
            # Of the passes on the way to the recording nothing must remain: no numbers drawn, no statistics moved.
            buffers = [buffer for network in step.networks.values() for buffer in network.buffers()]
            before = [buffer.clone() for buffer in buffers]
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self.replay = RECORDERS[device.type](work, self.pool)
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    def _passes(self, step: Step) -> None:
        total = torch.zeros((), device=step.real.device)
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        for term in self.terms:  # the graph of one term at a time is in memory
            value = term(step).float().mean() * self.gain
            found = torch.autograd.grad(value, self.parameters, allow_unused=True)
            pairs = zip(gradients, found, strict=True)
            gradients = [a if b is None else b if a is None else a + b for a, b in pairs]
            total = total + value.detach()
        self.loss, self.gradients = total, gradients


class _Known(torch.autograd.Function):
    """A loss whose gradients have been computed with it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(None if gradient is None else gradient * slope for gradient in ctx.gradients)


def tensors_of(step: Step) -> list[Tensor]:
    """What is another in every step."""
    return [step.real, step.real_cond.c, step.real_cond.h, step.z, step.gen_cond.c, step.gen_cond.h]


def record(system: System) -> None:
    """From now on, record every phase when it runs for the first time, and replay it."""
    pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
    system.phases = [
        dataclasses.replace(phase, terms=[RecordedTerms(phase, pool)], gain=1.0) for phase in system.phases
    ]


def check_graphs(system: str, kind: SystemKind, device: torch.device) -> None:
    """
    Raises:
        UserError: --graphs can't be had there, or not with that system.
    """
    if device.type not in RECORDERS:
        raise UserError(
            f"--graphs: there are no CUDA graphs on {device.type}; leave it out (of a run "
            "that goes on: --no-graphs), or use --device=cuda"
        )
    if not kind.records:
        raise UserError(f"--graphs: the passes of {system} can't be recorded; leave it out")
