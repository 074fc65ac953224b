"""Starts peer.py on a published checkout that the user has."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch_utils.command_line import UserError


def check_checkout(checkout: Path) -> None:
    """
    Raises:
        UserError: there is none.
    """
    there = checkout / "training"
    if not all((there / name).is_file() for name in ("__init__.py", "networks.py", "loss.py")):
        raise UserError(f"--peer={checkout}: expected a checkout whose training/ has __init__.py, networks.py, loss.py")


def run_peer(checkout: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of its works by name, and its memory.

    Raises:
        UserError: there is no such checkout, or it fails; its last line says why.
    """
    check_checkout(checkout)
    folder = checkout.resolve()
    path = os.pathsep.join([str(folder), str(folder.parent)])  # ic_gan's files import each other from one folder up
    command = [sys.executable, str(Path(__file__).with_name("peer.py")), json.dumps(spec)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"--peer={checkout}: {said[-1] if said else f'ended with {done.returncode}'}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
