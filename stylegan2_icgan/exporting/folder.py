"""A generator as a folder for the Hugging Face hub: weights, JSON, exemplars and a card."""

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from stylegan2_icgan.exporting.card import card
from stylegan2_icgan.exporting.exemplar_archive import load_exemplars, save_exemplars
from torch_utils.command_line import UserError
from torch_utils.files import replace_folder
from training.checkpoint import Recipe, Snapshot
from training.system import DataShape

KIND, FORMAT = "stylegan2_icgan generator", 1
CONFIG, WEIGHTS, EXEMPLARS, CARD = "config.json", "model.safetensors", "exemplars.npz", "README.md"
READ = (CONFIG, WEIGHTS, EXEMPLARS)  # all that is needed to use it
PREFIX = "generator."  # before the names of tensors: where the network is in `HubGenerator`


def check_folder(path: Path) -> None:
    """Whether a folder can be written at `path`: only an earlier export is ever replaced.

    Raises:
        UserError: something else is there.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--out={path} is a file; expected a folder, or a name that ends in .onnx, .pt2 or .npz")
    if path.is_dir() and any(path.iterdir()) and _config(path).get("kind") != KIND:
        raise UserError(f"--out={path} is a folder with other content; name a new one")


def write_folder(snapshot: Snapshot, path: Path, made_with: str) -> None:
    """Write the averaged generator of a snapshot, whole or not at all.

    Args:
        made_with: name of the snapshot, for the card.

    Raises:
        OSError: e.g. a full disk.
    """
    recipe = snapshot.recipe
    config = {
        "kind": KIND,
        "format": FORMAT,
        "system": recipe.system,
        "options": recipe.options,
        "shape": vars(recipe.shape),
        "cur_nimg": snapshot.cur_nimg,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        weights = {PREFIX + name: tensor.contiguous() for name, tensor in snapshot.networks["G_ema"].items()}
        (temporary / WEIGHTS).write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
        save_exemplars(snapshot.exemplars, temporary / EXEMPLARS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(card(snapshot, made_with), encoding="utf-8")
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_folder(path: Path) -> Snapshot:
    """The generator in a folder, as a snapshot without G and D; nothing in the folder is executed.

    Raises:
        UserError: not such a folder, damaged, or from a newer version.
    """
    config = _config(path)
    if config.get("kind") != KIND:
        raise UserError(f"{path} is no exported generator; expected a folder that export.py wrote")
    if not isinstance(config.get("format"), int) or config["format"] > FORMAT:
        raise UserError(f"{path} has format {config.get('format')}; this version reads up to {FORMAT}, update it")
    try:
        recipe = Recipe(config["system"], config["options"], DataShape(**config["shape"]), {})
        weights: dict[str, torch.Tensor] = safetensors.torch.load_file(path / WEIGHTS)
        networks = {"G_ema": {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}}
        return Snapshot(recipe, networks, load_exemplars(path / EXEMPLARS), config["cur_nimg"])
    except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not whole ({type(error).__name__}: {reason}); export or fetch it again") from None


def _config(path: Path) -> dict[str, Any]:
    """config.json, or {} where there is none."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
