"""What a GAN system is: networks, and a table of phases that train them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from training.step import Step, Term


@dataclass(frozen=True)
class DataShape:
    """What the data prescribes to the networks."""

    img_resolution: int
    img_channels: int
    c_dim: int
    h_dim: int


class Stateful(Protocol):
    """Anything with a memory joins the training state under a name."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Phase:
    """One row of the table: which network is trained, on which terms, and how often.

    A lazily applied regulariser (StyleGAN2 section 3.1) has interval = gain = n; a network trained on every n-th step
    without compensation (n_critic) has interval = n and gain 1.
    """

    name: str
    trains: str
    terms: Sequence[Term]
    interval: int = 1
    gain: float = 1.0


@dataclass
class System:
    """Networks, phases and optimisers.

    Args:
        state: names whatever else has a memory (a running mean of path lengths).
        average_buffers: whether the average generator averages running statistics, too.
    """

    networks: dict[str, torch.nn.Module]
    phases: list[Phase]
    optimizers: dict[str, torch.optim.Optimizer]
    state: dict[str, Stateful] = field(default_factory=dict)
    average_buffers: bool = False

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
        return networks | optimizers | self.state

    def run(self, phase: Phase, rounds: Sequence[Step]) -> None:
        """Accumulate the gradients of a phase over equal rounds, averaged, and take one optimiser step."""
        for name, network in self.networks.items():
            network.requires_grad_(name == phase.trains)
        optimizer = self.optimizers[phase.trains]
        optimizer.zero_grad(set_to_none=True)
        for step in rounds:
            for term in phase.terms:  # one backward per term: the graph of one term at a time is in memory
                (term(step).mean() * (phase.gain / len(rounds))).backward()
        optimizer.step()


def lazy_adam(
    network: torch.nn.Module, lr: float, betas: tuple[float, float], eps: float = 1e-8, reg_interval: int | None = None
) -> torch.optim.Adam:
    """Adam for a network that takes one extra regulariser step every `reg_interval` steps.

    The learning rate and the betas are corrected by c = interval / (interval + 1), so that the number of optimiser
    steps does not change the training (StyleGAN2, arXiv 1912.04958, appendix B, "Lazy regularization").
    """
    c = 1.0 if reg_interval is None else reg_interval / (reg_interval + 1)
    return torch.optim.Adam(network.parameters(), lr=lr * c, betas=(betas[0] ** c, betas[1] ** c), eps=eps)


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
    """

    options: type
    networks: Mapping[str, Callable[[Any, DataShape], torch.nn.Module]]
    build: Callable[[Any, dict[str, torch.nn.Module]], System]
    derive: Callable[[Any, int, int, int], Derived]
    check: Callable[[Any, int, int], None]
