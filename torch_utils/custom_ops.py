"""The native ops: one shared library, built once for this machine, and when it is used.

    python -m torch_utils.custom_ops            what is there, and in one line whether native ops are used
    python -m torch_utils.custom_ops --build    build it now

The library knows nothing of Python and is called through ctypes: it takes seconds to compile, and no change of torch's
interfaces can break its build. It lies in the user's cache, in a folder whose name is a hash of all it depends on.
"""

import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from torch_utils.command_line import Command, UserError
from torch_utils.locks import hold
from torch_utils.ops import toolchain

MODES = ("auto", "native", "ref")
LIBRARY = "native_ops.so"
COMPILE = "import json, sys; from torch.utils import cpp_extension; cpp_extension.load(**json.loads(sys.argv[1]))"
WHERE = {"cpu": "the CPU", "cuda": "CUDA"}

_mode = "ref"  # a script chooses another; nothing that is merely imported starts a compiler
_found: dict[str, ctypes.CDLL | None] = {}  # kind -> library, or None where it can't be had


class BuildError(UserError):
    """The library can't be had: one line with the reason, and the log's path where a compiler ran."""


def set_mode(mode: str) -> None:
    """Choose what `impl='auto'` of the ops means from now on.

    Args:
        mode: 'ref': the reference, always. 'native': the native ops, or a BuildError. 'auto': the native ops where
            they can be had, else the reference, which one line on standard error says once.

    Raises:
        ValueError: another mode.
    """
    global _mode
    if mode not in MODES:
        raise ValueError(f"mode: {mode!r} is not one of {', '.join(MODES)}.")
    _mode = mode
    for kind in [kind for kind, found in _found.items() if found is None]:
        del _found[kind]  # try again


def get_mode() -> str:
    """The mode in force: auto, native or ref."""
    return _mode


def prepare(device: torch.device) -> str:
    """Build or load now, before a run starts, what the mode needs for tensors on `device`.

    Returns:
        What the ops are from now on, for the run's records: 'native' or 'ref'.

    Raises:
        BuildError: mode 'native', and the library can't be had.
    """
    if _mode == "ref":
        return "ref"
    if device.type not in WHERE:
        if _mode == "native":
            raise BuildError(f"--ops=native: there are no native ops for {device.type}; use --ops=auto or --ops=ref")
        return "ref"
    return "ref" if library(device.type, must=_mode == "native") is None else "native"


def library(kind: str, must: bool) -> ctypes.CDLL | None:
    """The library for tensors on `kind`, 'cpu' or 'cuda'; it is built on the first call. None where it can't be had.

    Raises:
        BuildError: it can't be had and `must`.
    """
    if kind == "cpu" and _found.get("cuda") is not None:
        return _found["cuda"]  # it holds both
    found = _found.get(kind)
    if found is None and (must or kind not in _found):
        try:
            found = _found[kind] = _load(build(kind))
        except BuildError as error:
            if must:
                raise
            _found[kind] = None
            _say(f"native ops are not used on {WHERE[kind]}: {error}")
    return found


def cache_folder() -> Path:
    """Where libraries lie: in TORCH_EXTENSIONS_DIR if that is set, else in the user's cache."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stylegan2-icgan-ops"


def build(kind: str) -> Path:
    """The path of the library, which is built if it isn't there.

    Two processes may call this at once: one builds, the other waits, and after 10 s says what for.

    Raises:
        BuildError: something is missing, or the compiler failed.
    """
    try:
        tools = toolchain.find(kind)
    except toolchain.Missing as missing:
        raise BuildError(str(missing)) from None
    folder = cache_folder() / f"{kind}-{tools.key()}"
    path = folder / LIBRARY
    if path.is_file():
        return path
    came, failed = time.time(), folder.with_suffix(".failed")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with hold(folder.with_suffix(".lock"), _say, patience_sec=10):
            if path.is_file():
                return path
            if failed.is_file() and failed.stat().st_mtime > came:  # another process failed while this one waited
                raise BuildError(failed.read_text(encoding="utf-8"))
            failed.unlink(missing_ok=True)
            try:
                _build_locked(tools, folder)
            except BuildError as error:
                failed.write_text(str(error), encoding="utf-8")
                raise
    except OSError as error:
        raise BuildError(f"{folder.parent}: {error.strerror}; name another folder in TORCH_EXTENSIONS_DIR") from None
    return path


def _build_locked(tools: toolchain.Toolchain, folder: Path) -> None:
    log = folder.with_suffix(".log")
    _say(f"building native ops for {WHERE[tools.kind]}, once (log: {log})")
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    began = time.monotonic()
    private = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        command = [sys.executable, "-c", COMPILE, json.dumps(tools.load_arguments(private))]
        if not toolchain.has_ninja():
            command = tools.compiler_call(private / LIBRARY)
        with log.open("wb") as output:
            code = _run(command, output.fileno(), tools.environment())
        if code != 0 or not (private / LIBRARY).is_file():
            raise BuildError(f"the build failed after {time.monotonic() - began:.0f} s, see {log}")
        for item in private.iterdir():  # objects and ninja's files have no use any more
            if item.name != LIBRARY:
                item.unlink()
        with (private / LIBRARY).open("rb") as file:
            os.fsync(file.fileno())
        private.rename(folder)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    _say(f"native ops for {WHERE[tools.kind]}: built in {time.monotonic() - began:.0f} s")


def _run(command: list[str], output: int, environment: dict[str, str]) -> int:
    """The exit code. Whatever ends the wait, Ctrl-C too, ends the command and all that it started."""
    with subprocess.Popen(
        command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    ) as process:
        try:
            return process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} does not load: {error}; remove {path.parent} to build it again") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def describe(kind: str) -> tuple[str, str]:
    """For a person: where the library for `kind` is, and whether it is or would be used. Builds nothing."""
    try:
        tools = toolchain.find(kind)
    except toolchain.Missing as missing:
        return "none", f"not on {WHERE[kind]} ({missing})"
    path = cache_folder() / f"{kind}-{tools.key()}" / LIBRARY
    if path.is_file():
        return str(path), f"on {WHERE[kind]}, built"
    failed = path.parent.with_suffix(".failed")
    if failed.is_file():
        return f"{path} (not built)", f"not on {WHERE[kind]} ({failed.read_text(encoding='utf-8')})"
    return f"{path} (not built yet)", f"on {WHERE[kind]}, to be built on first use"


def _table() -> list[tuple[str, str]]:
    compiler = os.environ.get("CXX") or "c++"
    home = toolchain.cuda_home()
    return [
        ("torch", f"{torch.__version__}, Python {platform.python_version()}"),
        ("CUDA", f"{torch.version.cuda or 'none'}, {torch.cuda.device_count()} devices"),
        ("nvcc", f"{home / 'bin' / 'nvcc'}, {toolchain.version(str(home / 'bin' / 'nvcc'))}" if home else "none"),
        ("compiler", f"{found}, {toolchain.version(found)}" if (found := shutil.which(compiler)) else "none"),
        ("architectures", f"{platform.machine()} (native), CUDA {toolchain.cuda_architectures() or 'none'}"),
        *((f"library, {kind}", describe(kind)[0]) for kind in WHERE),
    ]


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--build", "build_now", is_flag=True, help="Build what can be built here; exit code 2 if that fails.")
def main(build_now: bool) -> None:
    """Say what builds the native ops here, where they are, and in the last line whether they are used."""
    problems: list[BuildError] = []
    for kind in WHERE if build_now else ():
        with contextlib.suppress(toolchain.Missing):
            if kind == "cuda":
                toolchain.find(kind)  # where it isn't, the CPU's library is all there is to build
            try:
                _load(build(kind))
            except BuildError as error:
                problems.append(error)
    for name, text in _table():
        click.echo(f"{name:<15}{text}")
    click.echo("native ops: " + "; ".join(describe(kind)[1] for kind in WHERE))
    if problems:
        raise problems[0]


if __name__ == "__main__":
    main()
