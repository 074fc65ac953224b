"""Steps whose gradients are not finite are not taken, but counted; too many in a row end a run."""

from dataclasses import dataclass

import torch

from torch_utils import training_stats
from torch_utils.command_line import UserError


@dataclass
class _Trouble:
    """Bad steps of one network, counted where it is: nothing is read from the device in a step."""

    in_a_row: torch.Tensor  # float32 []
    first: torch.Tensor  # int64 []: which of the gradients was not finite when the row began
    names: list[str]


class Guard:
    """Stands between the gradients and the optimiser. The weights stay those of the last good step."""

    def __init__(self) -> None:
        self._trouble: dict[str, _Trouble] = {}

    def step(self, phase: str, name: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Let the optimiser step if every gradient of the network is finite, and report their norm.

        Returns:
            float32 [], 1 where one was not, else 0.
        """
        named = [(key, p.grad) for key, p in network.named_parameters() if p.grad is not None]
        if not named:
            optimizer.step()
            return torch.zeros(())
        norms = torch.stack(torch._foreach_norm([gradient for _, gradient in named]))
        bad = ~norms.isfinite()
        found = bad.any().float()
        training_stats.report(f"Gradients/{phase}", norms.norm())
        training_stats.report("Gradients/bad_steps", found)

        # Remember which was the first, and for how long it has been so.
        names = [key for key, _ in named]
        before = self._trouble.get(name)
        in_a_row = torch.zeros_like(found) if before is None else before.in_a_row
        first = bad.to(torch.uint8).argmax()
        if before is not None and before.names == names:
            first = torch.where(in_a_row > 0, before.first, first)
        self._trouble[name] = _Trouble((in_a_row + 1) * found, first, names)

        # Fused optimisers are told on the device; others have to be asked to wait for the answer.
        if optimizer.param_groups[0].get("fused"):
            optimizer.grad_scale, optimizer.found_inf = None, found  # type: ignore[attr-defined]
            optimizer.step()
        elif not found:
            optimizer.step()
        return found

    def check(self, limit: int) -> None:
        """Waits for the device.

        Raises:
            UserError: a network has had `limit` bad steps in a row; the first gradient that was not finite is named.
        """
        for name, trouble in self._trouble.items():
            rows = int(trouble.in_a_row)
            if rows >= limit:
                first = trouble.names[int(trouble.first)]
                raise UserError(
                    f"gradients of {name} were not finite in {rows} steps in a row, {first} first; nothing of it is "
                    "saved. Go on from the last state with --resume, if there is one, or start again with --fp32, "
                    "smaller learning rates or other data"
                )
