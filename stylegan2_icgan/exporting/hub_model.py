"""An exported generator as the Hugging Face hub's own classes load it."""

from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from stylegan2_icgan.systems import SYSTEMS
from torch_utils.command_line import UserError
from training.config import from_json
from training.system import DataShape


class HubGenerator(torch.nn.Module, PyTorchModelHubMixin, library_name="stylegan2-icgan", tags=["gan"]):
    """`HubGenerator.from_pretrained(folder or hub id)`: the generator alone, to be called as the networks are.

    `icgan.load` gives more: exemplars, features of images, and one-line errors at once where there is no network.

    Args:
        system: name in the table of systems.
        options: the system's own, JSON.
        shape: img_resolution, img_channels, c_dim, h_dim.
    """

    def __init__(self, system: str, options: dict[str, Any], shape: dict[str, int]) -> None:
        super().__init__()
        if system not in SYSTEMS:
            raise UserError(f"config.json is of system {system!r}; this version has {', '.join(SYSTEMS)}")
        kind = SYSTEMS[system]
        self.generator = kind.networks["G"](from_json(kind.options, options, "config.json"), DataShape(**shape))
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, c: Tensor | None = None, h: Tensor | None = None, **options: Any) -> Tensor:
        """As the generator's own; `options` are its keywords, such as truncation_psi."""
        images: Tensor = self.generator(z, c, h, **options)
        return images

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **given: Any) -> Self:  # the mixin's default is False
        model: Self = super()._from_pretrained(strict=strict, **given)
        return model
