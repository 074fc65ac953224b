"""The exemplars of a snapshot as a file of their own: arrays and JSON that NumPy alone can read."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_utils.command_line import UserError
from torch_utils.files import atomic_write
from training.condition import Condition, Exemplars

DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error)
STATE = "extractor_state."  # before the names of what the extractor needs beside published weights


def save_exemplars(exemplars: Exemplars, path: Path) -> None:
    """Write a .npz, whole or not at all.

    Its arrays: `features` float32 [N, h_dim], `labels` float32 [N, c_dim], `images` uint8 [N, C, H, W] (or no rows),
    `names` [N] text, `extractor` JSON text, and `extractor_state.*`.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "features": exemplars.condition.h.numpy(),
        "labels": exemplars.condition.c.numpy(),
        "images": exemplars.images.numpy(),
        "names": np.array(exemplars.names, dtype=str),
        "extractor": np.array(json.dumps(exemplars.extractor)),
    }
    arrays |= {STATE + name: tensor.numpy() for name, tensor in exemplars.extractor_state.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_exemplars(path: Path) -> Exemplars:
    """Read such a file; nothing in it is executed.

    Raises:
        UserError: missing, damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        tensors = {name: torch.from_numpy(arrays.pop(name)) for name in ("features", "labels", "images")}
        state = {name.removeprefix(STATE): torch.from_numpy(arrays[name]) for name in arrays if name.startswith(STATE)}
        condition = Condition(tensors["labels"], tensors["features"])
        return Exemplars(
            condition, tensors["images"], arrays["names"].tolist(), json.loads(str(arrays["extractor"])), state
        )
    except (OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, *DAMAGED):
        raise UserError(f"{path} can't be read as exemplars: missing, damaged or another file; export again") from None
