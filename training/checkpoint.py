"""What a run leaves on disk: snapshots for people, training states for itself. Tensors and JSON, never code."""

import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from torch_utils.command_line import UserError
from torch_utils.files import atomic_write
from training.condition import Condition, Exemplars
from training.run_folder import snapshots_in, states_in
from training.system import DataShape, Stateful

SNAPSHOT_FORMAT, STATE_FORMAT = 1, 1


@dataclass(frozen=True)
class Recipe:
    """What it takes to build the networks again, and how they came about.

    Args:
        system: name in the table of systems.
        options: the system's own options, JSON.
        shape: what the data prescribed.
        training_options: everything the run was told, JSON; for the record.
    """

    system: str
    options: dict[str, Any]
    shape: DataShape
    training_options: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A trained model as a file.

    Args:
        recipe: what it is.
        networks: name -> state dict; `G_ema` is the generator to use, `G` and `D` go on training.
        exemplars: conditions stored beside the weights.
        cur_nimg: images seen.
    """

    recipe: Recipe
    networks: dict[str, dict[str, torch.Tensor]]
    exemplars: Exemplars
    cur_nimg: int


def check_finite(networks: Mapping[str, dict[str, Any]]) -> None:
    """Refuse weights that can't be used, so that the last good ones are not followed by bad ones.

    Raises:
        UserError: the first tensor that is not finite is named.
    """
    for name, state in networks.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise UserError(
                    f"{name}.{key} is not finite: nothing more is saved. Go on from the last state with --resume, if "
                    "there is one, or start again with --fp32 or smaller learning rates"
                )


def save_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot, whole or not at all.

    Raises:
        OSError: e.g. a full disk.
    """
    recipe, exemplars = snapshot.recipe, snapshot.exemplars
    description = {
        "system": recipe.system,
        "options": recipe.options,
        "shape": vars(recipe.shape),
        "training_options": recipe.training_options,
        "cur_nimg": snapshot.cur_nimg,
        "exemplar_names": exemplars.names,
        "extractor": exemplars.extractor,
    }
    content = {
        "format": SNAPSHOT_FORMAT,
        "kind": "stylegan2_icgan snapshot",
        "config": json.dumps(description),
        "networks": snapshot.networks,
        "exemplars": {"c": exemplars.condition.c, "h": exemplars.condition.h, "images": exemplars.images},
        "extractor_state": exemplars.extractor_state,
    }
    _save(path, content)


def load_snapshot(path: str | Path, flag: str = "--network") -> Snapshot:
    """Read a snapshot; nothing in it is executed.

    Args:
        flag: by which the file was named.

    Raises:
        UserError: missing, damaged, something else, or from a newer version; the file is named.
    """
    content = _load(Path(path), "stylegan2_icgan snapshot", SNAPSHOT_FORMAT, flag)
    try:
        description = json.loads(content["config"])
        stored = content["exemplars"]
        exemplars = Exemplars(
            Condition(stored["c"], stored["h"]),
            stored["images"],
            description["exemplar_names"],
            description["extractor"],
            content["extractor_state"],
        )
        recipe = Recipe(
            description["system"],
            description["options"],
            DataShape(**description["shape"]),
            description["training_options"],
        )
        return Snapshot(recipe, content["networks"], exemplars, description["cur_nimg"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{flag}={path} is not a whole snapshot ({error!r}); use another one") from None


def save_state(path: Path, members: Mapping[str, Stateful], progress: dict[str, Any], keep: int = 2) -> None:
    """Write a training state: the state of every member, and where the run is. Older ones beyond `keep` are removed.

    Raises:
        OSError: e.g. a full disk. What was there before is untouched.
    """
    content = {
        "format": STATE_FORMAT,
        "kind": "stylegan2_icgan training state",
        "progress": progress,
        "members": {name: member.state_dict() for name, member in members.items()},
    }
    _save(path, content)
    for old in states_in(path.parent)[:-keep]:
        if old != path:
            old.unlink()


def read_state(path: Path) -> dict[str, Any]:
    """The content of a training state, for `restore_state`.

    Raises:
        UserError: missing, damaged or something else; or an older state than others of the same run, which a run that
            continued from it would mix with its own.
    """
    content = _load(path, "stylegan2_icgan training state", STATE_FORMAT, "--resume")
    newest = max(states_in(path.parent), default=path)
    if newest.name > path.name:
        raise UserError(
            f"--resume={path} is older than {newest.name} beside it; continue from that one (--resume={path.parent}), "
            "or move the newer states and snapshots away first"
        )
    return content


def restore_state(content: dict[str, Any], members: Mapping[str, Stateful]) -> dict[str, Any]:
    """Give every member its state back.

    Returns:
        progress, as it was saved.

    Raises:
        UserError: members other than those saved, or of other shapes. Never "starting from scratch".
    """
    saved = content.get("members")
    if not isinstance(saved, dict) or set(saved) != set(members):
        names = sorted(saved) if isinstance(saved, dict) else "nothing"
        raise UserError(f"--resume: the state holds {names}; this run needs {sorted(members)}. Use its own options")
    for name, member in members.items():
        try:
            member.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError):
            raise UserError(
                f"--resume: {name} in the state has other shapes than training_options.json asks for; continue the "
                "run with the options it was started with"
            ) from None
    progress: dict[str, Any] = content["progress"]
    return progress


class _Writer:
    """Keeps the error of a failed write: torch.save covers it with a RuntimeError about positions."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _save(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        writer = _Writer(file)
        try:
            torch.save(content, writer)  # type: ignore[arg-type]
        except RuntimeError:
            if writer.error is not None:
                raise writer.error from None
            raise


def _load(path: Path, kind: str, newest: int, flag: str) -> dict[str, Any]:
    if not path.is_file():
        there = "is not a file" if path.exists() else "does not exist"
        such = "".join(f", such as {newest}" for newest in snapshots_in(path)[-1:])
        if (path / "model.safetensors").exists():
            such = "; a folder for the hub is loaded by icgan.load, from Python"
        raise UserError(f"{flag}={path} {there}; expected a file written by train.py{such}")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch itself would take the wrong numbers
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):  # torch remarks on pickles that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # zip, pickle and torch raise a dozen kinds for one thing, none in words for a user
        raise UserError(f"{flag}={path} can't be read: damaged, or not written by train.py; use an older one") from None
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise UserError(f"{flag}={path} is not a {kind.removeprefix('stylegan2_icgan ')}; expected one of train.py's")
    if content["format"] > newest:
        raise UserError(f"{flag}={path} has format {content['format']}; this version reads up to {newest}, update it")
    return content
