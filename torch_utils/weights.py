"""Files of network weights: known by their content, read without executing anything in them."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from torch_utils.command_line import UserError
from torch_utils.files import sha256

WRAPPERS = (  # keys under which training scripts keep a state dict, an average of weights before the weights themselves
    "state_dict_ema", "model_ema", "state_dict", "state_dict_best", "feat_model", "model", "model_state_dict",
)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """A file of weights, known by its content.

    Args:
        path: .safetensors, or anything `torch.save` wrote.
        origin: "file", "huggingface REPOSITORY@COMMIT", or the address it was fetched from.
        sha256: hexadecimal, of the whole file.
        flag: by which a user names a file of their own.
    """

    path: Path
    origin: str
    sha256: str
    flag: str

    @property
    def label(self) -> str:
        """What to call it in an error."""
        return f"{self.flag}={self.path}" if self.origin == "file" else f"the published weights {self.path}"

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state dict in the file.

        Raises:
            UserError: damaged, or not a state dict.
        """
        again = "get it again" if self.origin == "file" else "delete that file and it is fetched again"
        return load_weights(self.path, self.label, again)


def given_weights(path: Path, flag: str) -> Weights:
    """The user's own file.

    Raises:
        UserError: it does not exist.
    """
    if not path.is_file():
        raise UserError(f"{flag}={path} does not exist; expected a .pth or .safetensors file")
    return Weights(path, "file", sha256(path), flag)


def load_weights(path: Path, label: str, again: str = "get it again") -> dict[str, torch.Tensor]:
    """The state dict in a local .safetensors or .pth file; nothing in the file is executed.

    Args:
        label: what to call the file in an error.
        again: what to do when it is damaged.

    Raises:
        UserError: damaged, not a state dict, or one among objects that would have to be executed.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's checkpoints keep their flags in one
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch and safetensors raise their own kinds; each means the same to the user
        objects = _foreign_objects(path)
        if objects:
            raise UserError(
                f"{label} holds objects beside tensors ({objects}), which are not loaded since they could execute "
                "anything; save its state dict alone"
            ) from None
        raise UserError(f"{label} can't be read: damaged, or no weights; {again}") from None
    tensors = _state_dict(content)
    if tensors is None:
        raise UserError(f"{label} holds no state dict; expected a mapping of names to tensors")
    return tensors


def _state_dict(content: Any) -> dict[str, torch.Tensor] | None:
    """A mapping of names to tensors, at the top or inside the wrappings of training scripts."""
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return dict(content)
    inner = (_state_dict(content[key]) for key in WRAPPERS if key in content)
    return next((found for found in inner if found is not None), None)


def _foreign_objects(path: Path) -> str:
    """Names of the objects in a pickle that are not plain data, or ''."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:3])
    except Exception:  # damaged, or no pickle at all
        return ""


def one_line(error: object) -> str:
    """The text of an error, short and on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
