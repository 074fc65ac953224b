"""Whether several processes still train one model."""

from collections.abc import Mapping

import torch

from torch_utils.command_line import UserError
from torch_utils.distributed import gather, world_size


def fingerprint(network: torch.nn.Module) -> int:
    """A number that two networks share when their parameters are equal to the bit, and hardly otherwise."""
    sums = [
        parameter.detach().contiguous().view(torch.uint8 if parameter.element_size() != 4 else torch.int32)
        for parameter in network.parameters()
    ]
    weighted = [bits.sum(dtype=torch.int64) * (2 * place + 1) for place, bits in enumerate(sums)]
    return int(torch.stack(weighted).sum()) if weighted else 0


def check_equal_weights(networks: Mapping[str, torch.nn.Module]) -> None:
    """All processes call this; one process has nothing to compare.

    Raises:
        UserError: weights that differ; names the networks and the ranks.
    """
    if world_size() == 1:
        return
    everyone = gather({name: fingerprint(network) for name, network in networks.items()}, brisk=True)
    for name in networks:
        others = [rank for rank, prints in enumerate(everyone) if prints[name] != everyone[0][name]]
        if others:
            ranks = ", ".join(map(str, others))
            raise UserError(
                f"the weights of {name} differ between rank 0 and rank {ranks}: nothing more is saved; go on from "
                "the last state with --resume, if there is one; if it happens again report drivers and versions"
            )
