"""The folder of a run: its name, what is in it, which one is the newest."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch_utils.command_line import UserError
from torch_utils.files import atomic_write
from torch_utils.locks import hold

OPTIONS_FILE = "training_options.json"
LEAVING_SEC = 5.0  # for the process before to have saved and left


def new_run_folder(outdir: Path, description: str) -> Path:
    """`outdir/00003-description`, numbered after the highest number there, made."""
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[1]) for entry in outdir.iterdir() if (match := re.match(r"(\d{5})-", entry.name))]
        number = max(numbers, default=-1) + 1
        while True:
            run = outdir / f"{number:05d}-{description}"
            try:
                run.mkdir()
            except FileExistsError:  # another start took the number a moment ago
                number += 1
            else:
                return run
    except OSError as error:
        raise UserError(f"--outdir={outdir}: no folder can be made there ({error}); name another one") from None


def check_writable(outdir: Path) -> None:
    """Refuse a folder for runs that can't be made or written, before any work is done for it."""
    there = next(folder for folder in (outdir, *outdir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--outdir={outdir}: {there} is no folder that can be written; name another one")


def find_run(resume: str, outdir: Path) -> tuple[Path, Path]:
    """What `--resume` means: 'latest' (the newest run in outdir), a run folder, or one of its states.

    Returns:
        the run folder and the training state to continue from.

    Raises:
        UserError: no such run, or a run without a state.
    """
    if not resume:
        raise UserError("--resume is empty; expected a run folder, one of its states, or latest")
    if resume == "latest":
        runs = sorted(entry for entry in outdir.glob("[0-9][0-9][0-9][0-9][0-9]-*") if entry.is_dir())
        if not runs:
            raise UserError(f"--resume=latest: there is no run in --outdir={outdir}; start one without --resume")
        run = runs[-1]
    else:
        run = Path(resume)
        if run.is_file() and not run.name.startswith("training-state-"):
            raise UserError(
                f"--resume={resume} is not a training state (training-state-*.pt); expected one, a run folder, or "
                "latest; a new run takes the weights of a snapshot with --init-from"
            )
        if run.is_file():
            return run.parent, run
        if not run.is_dir():
            raise UserError(f"--resume={resume} does not exist; expected a run folder, one of its states, or latest")
    states = states_in(run)
    if not states:
        raise UserError(f"--resume={resume}: {run} holds no training-state-*.pt; nothing to continue, start a new run")
    return run, states[-1]


@contextlib.contextmanager
def alone(run: Path, newest: Path | None = None) -> Iterator[None]:
    """Hold a run for the length of the block: two processes that train it would write over each other.

    Args:
        newest: the state that was read to continue from.

    Raises:
        UserError: another process holds it, and goes on doing so; or has saved a newer state before it left.
    """

    def refuse(line: str) -> None:
        raise UserError(f"{run}: another process is training this run; stop that one first, or wait until it has ended")

    with hold(run / ".lock", refuse, patience_sec=LEAVING_SEC):
        if newest is not None and states_in(run)[-1].name != newest.name:
            raise UserError(f"--resume={run}: another process has just trained this run further; resume it again")
        yield


def remove_leftovers(run: Path) -> None:
    """Delete files that a killed process was writing; they never got their name."""
    for file in run.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def states_in(run: Path) -> list[Path]:
    """Training states of a run, oldest first."""
    return sorted(run.glob("training-state-*.pt"))


def snapshots_in(run: Path) -> list[Path]:
    """Snapshots of a run, oldest first."""
    return sorted(run.glob("network-snapshot-*.pt"))


def snapshot_name(cur_nimg: int, batch: int) -> str:
    """File name of the snapshot after so many images: of thousands, and of the rest where a step before had as many.

    So that a run which is interrupted, or ends, between two ticks overwrites neither of their snapshots.
    """
    kimg, rest = divmod(cur_nimg, 1000)
    between = kimg > 0 and (cur_nimg - batch) // 1000 == kimg
    return f"network-snapshot-{kimg:06d}{f'_{rest:03d}' if between else ''}.pt"


def snapshot_of(run: Path, kimg: float) -> str:
    """File name of the snapshot that was measured after so many thousand images."""
    names = [snapshot_name(round(kimg * 1000), batch) for batch in (1, 1000)]
    return next((name for name in names if (run / name).exists()), names[-1])


def write_options(run: Path, options: dict[str, Any]) -> None:
    with atomic_write(run / OPTIONS_FILE) as file:
        file.write((json.dumps(options, indent=2) + "\n").encode())


def read_options(run: Path) -> dict[str, Any]:
    """What `training_options.json` of a run holds."""
    path = run / OPTIONS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} can't be read ({error}); a run is continued with the options it was started with"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected the options of a run")
    return content
