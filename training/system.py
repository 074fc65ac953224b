"""What a GAN system is: networks, and a table of phases that train them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from torch_utils.distributed import average, world_size
from training.dataset import SampleSource
from training.guard import Guard
from training.mixed_precision import Precision
from training.preview import Preview
from training.randomness import seed_everything
from training.step import Step, Term


@dataclass(frozen=True)
class DataShape:
    """What the data prescribes to the networks."""

    img_resolution: int
    img_channels: int
    c_dim: int
    h_dim: int


class Sheets(Protocol):
    """What a run draws for people."""

    def save_reals(self, path: Path) -> None: ...
    def save_fakes(self, path: Path, generator: torch.nn.Module) -> Mapping[str, float]:
        """Returns figures for the statistics, by their names."""
        ...


class Stateful(Protocol):
    """Anything with a memory joins the training state under a name."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Phase:
    """One row of the table: which network is trained, on which terms, how often, and what follows.

    A lazily applied regulariser (StyleGAN2 section 3.1) has interval = gain = n; a network trained on every n-th step
    without compensation (n_critic) has interval = n and gain 1.

    Args:
        when: whether a step, counted from 0, runs the phase; None: every `interval`-th does.
        after: is given the network that was trained, after the optimiser's step (weight clipping).
    """

    name: str
    trains: str
    terms: Sequence[Term]
    interval: int = 1
    gain: float = 1.0
    when: Callable[[int], bool] | None = None
    after: Callable[[torch.nn.Module], None] | None = None

    def due(self, step: int) -> bool:
        """Whether step number `step` runs this phase."""
        return step % self.interval == 0 if self.when is None else self.when(step)


@dataclass
class System:
    """Networks, phases and optimisers.

    Args:
        state: names whatever else has a memory (a running mean of path lengths).
        average_buffers: whether the average generator averages running statistics, too.
        preview: makes the sheets of a run out of (source, z_dim).
        frozen: network -> names of its parameters that are never trained.
        lr_factor: (images seen) -> what every learning rate is multiplied with; None: nothing.
    """

    networks: dict[str, torch.nn.Module]
    phases: list[Phase]
    optimizers: dict[str, torch.optim.Optimizer]
    state: dict[str, Stateful] = field(default_factory=dict)
    average_buffers: bool = False
    preview: Callable[[SampleSource, int], Sheets] = Preview
    frozen: dict[str, frozenset[str]] = field(default_factory=dict)
    lr_factor: Callable[[int], float] | None = None
    guard: Guard = field(default_factory=Guard)
    precision: Precision = field(default_factory=Precision)

    def __post_init__(self) -> None:
        for phase in self.phases:
            if phase.trains not in self.networks or phase.trains not in self.optimizers:
                raise ValueError(
                    f"phase {phase.name} trains {phase.trains}; there is no such network with an optimiser"
                )
            if phase.interval < 1:
                raise ValueError(f"phase {phase.name} has interval {phase.interval}; expected >= 1")

    def stateful(self) -> dict[str, Stateful]:
        """Everything of the system that a resumed run needs."""
        networks: dict[str, Stateful] = dict(self.networks)
        optimizers: dict[str, Stateful] = {f"{name}_optimizer": opt for name, opt in self.optimizers.items()}
        scale: dict[str, Stateful] = {} if self.precision.scale is None else {"loss_scale": self.precision.scale}
        return networks | optimizers | self.state | scale

    def run(self, phase: Phase, rounds: Sequence[Step]) -> None:
        """Accumulate the gradients of a phase over equal rounds, averaged over rounds and processes, and take one step.

        A step whose gradients are not finite is counted by the guard and not taken.
        """
        for name, network in self.networks.items():
            network.requires_grad_(name == phase.trains)
            for parameter in self.frozen.get(name, ()):
                network.get_parameter(parameter).requires_grad_(False)
        network, optimizer, scale = self.networks[phase.trains], self.optimizers[phase.trains], self.precision.scale
        optimizer.zero_grad(set_to_none=True)
        for step in rounds:
            if step.key:
                seed_everything(*step.key)
            for term in phase.terms:  # one backward per term: the graph of one term at a time is in memory
                with self.precision.autocast(step.real.device):
                    value = term(step).float().mean() * (phase.gain / len(rounds))
                (value if scale is None else value * scale.to(value.device).value).backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        average(gradients)
        if scale is not None and gradients:
            torch._foreach_div_(gradients, scale.value)
        if self.lr_factor is not None:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.lr_factor(rounds[0].cur_nimg)
        found = self.guard.step(phase.name, phase.trains, network, optimizer)
        if scale is not None:
            scale.update(found)
        if phase.after is not None:
            phase.after(network)

    def merge_buffers(self) -> None:
        """Average what networks follow as they run (mean styles, batch statistics) over all processes."""
        buffers = [b for network in self.networks.values() for b in network.buffers() if b.is_floating_point()]
        if world_size() > 1:
            doubles = [buffer.double() for buffer in buffers]  # in which a constant stays what it is
            average(doubles)
            for buffer, mean in zip(buffers, doubles, strict=True):
                buffer.copy_(mean)


def lazy_adam(
    network: torch.nn.Module, lr: float, betas: tuple[float, float], eps: float = 1e-8, reg_interval: int | None = None
) -> torch.optim.Adam:
    """Adam for a network that takes one extra regulariser step every `reg_interval` steps.

    The learning rate and the betas are corrected by c = interval / (interval + 1), so that the number of optimiser
    steps does not change the training (StyleGAN2, arXiv 1912.04958, appendix B, "Lazy regularization").
    """
    c = 1.0 if reg_interval is None else reg_interval / (reg_interval + 1)
    corrected = (betas[0] ** c, betas[1] ** c)
    return torch.optim.Adam(network.parameters(), lr=lr * c, betas=corrected, eps=eps, fused=True)


Derived = Mapping[str, tuple[Any, str]]  # option -> (value, why)


@dataclass(frozen=True)
class SystemKind:
    """One row of the table of systems: how to get from options to networks, and from networks to a `System`.

    Args:
        options: frozen dataclass of the system's own options; each is a flag.
        networks: name -> constructor of (options, shape).
        build: (options, networks) -> System.
        derive: (options, resolution, batch, batch_gpu) -> values for options left None.
        check: (options, resolution, batch_gpu); raises UserError for a combination that can't work.
        autocasts: whether --precision=bf16 and fp16 mean autocast; else its options say what they mean.
        conditions: options -> values of --cond that the networks have a use for; None: all.
        records: whether its phases do the same in every step, so that --graphs can record them.
        signed: whether the sign of a logit tells real from fake, which is what --aug=ada goes by.
    """

    options: type
    networks: Mapping[str, Callable[[Any, DataShape], torch.nn.Module]]
    build: Callable[[Any, dict[str, torch.nn.Module]], System]
    derive: Callable[[Any, int, int, int], Derived]
    check: Callable[[Any, int, int], None]
    autocasts: bool = True
    conditions: Callable[[Any], Sequence[str]] | None = None
    records: bool = False
    signed: bool = True
