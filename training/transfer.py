"""Start from another model: whatever has the same name and shape is taken over, and the rest is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from torch_utils.command_line import UserError
from training.checkpoint import Snapshot

SHOWN = 6  # names in a line of the report


@dataclass
class Report:
    """What became of the tensors of a network, by name.

    Args:
        learned: names of the parameters, the others being buffers: constants and what the network follows as it runs.
        loaded: taken over.
        mismatched: in both, of other shapes; as they were drawn.
        missing: of this network only; as they were drawn.
        unused: of the file only.
    """

    network: str
    learned: frozenset[str]
    loaded: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a person."""
        counts = f"{len(self.learned.intersection(self.loaded))} of {len(self.learned)} learned tensors loaded"
        rest = {
            "other shapes, drawn afresh": self.mismatched,
            "not in the file, drawn afresh": self.missing,
            "not used": self.unused,
        }
        return [f"{self.network}: {counts}"] + [
            f"{self.network}: {what}: {len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
            for what, names in rest.items()
            if names
        ]


def take_over(name: str, network: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> Report:
    """Copy what fits from a state dict into a network."""
    parameters = frozenset(key for key, _ in network.named_parameters(remove_duplicate=False))
    report, own = Report(name, parameters), network.state_dict()
    for key, value in own.items():
        if key not in state:
            report.missing.append(key)
        elif state[key].shape != value.shape:
            report.mismatched.append(key)
        else:
            value.copy_(state[key])
            report.loaded.append(key)
    report.unused = [key for key in state if key not in own]
    return report


def start_from(where: str, snapshot: Snapshot, networks: Mapping[str, torch.nn.Module]) -> list[Report]:
    """Take over what fits of a snapshot's networks, the generator's average where there is one for G.

    Raises:
        UserError: no weight fits a network. Biases and single numbers have the same shape at many widths, so one that
            fits says nothing.
    """
    reports = []
    for name, network in networks.items():
        state = snapshot.networks.get(f"{name}_ema", snapshot.networks.get(name, {}))
        report = take_over(name, network, state)
        if not any(network.get_parameter(key).ndim > 1 for key in report.learned.intersection(report.loaded)):
            raise UserError(
                f"--init-from={where}: nothing of its {name} fits this {name}; expected a snapshot of the same system "
                f"and channels (it is of {snapshot.recipe.system}, {snapshot.recipe.shape.img_resolution} px)"
            )
        reports.append(report)
    return reports


def first_layers(network: torch.nn.Module, count: int) -> frozenset[str]:
    """Names of the parameters of the first `count` layers, from the image on.

    Freezing them in the discriminator helps small data (Freeze-D: Mo et al., arXiv 2002.10964, section 3).

    Raises:
        UserError: the network does not have so many that another one is left to train.
    """
    layers: list[list[str]] = []
    for path, module in network.named_modules():
        names = [f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)]
        if names:
            layers.append(names)
    if count >= len(layers):
        raise UserError(
            f"--freeze-d={count}: the discriminator has {len(layers)} layers; expected 1 to {len(layers) - 1}"
        )
    return frozenset(name for names in layers[:count] for name in names)
