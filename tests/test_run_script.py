"""./run in a copy of the checkout, with a stand-in for Python that writes down what it is asked to do."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHELL = shutil.which("dash") or "/bin/sh"  # dash knows little beyond POSIX

STAND_IN = """#!/bin/sh
[ "$1" = -c ] || echo "$*" >>"$CALLS"
case "$1 $2" in
    "-c "*) [ -n "$VERSION" ] && echo "$VERSION" ;;
    "-m venv") [ "$VENV" = works ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") case "$*" in *"$UNAVAILABLE"*) exit 1 ;; esac ;;
    *)
        printf '%s\\n' "in $PWD" "threads ${OMP_NUM_THREADS:-any}"
        for argument; do printf '<%s>\\n' "$argument"; done
        case "$*" in *"$FAILS"*) exit 7 ;; esac
        ;;
esac
"""


class Checkout:
    """A copy of what ./run reads, in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.calls_file = folder / "a checkout", folder / "bin", folder / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        for name in ("run", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        self.python = self.program("python-stand-in", STAND_IN)
        self.program("uv", "#!/bin/sh\nexit 1\n")  # hides a real one

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, *args: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHON": str(self.python), "CALLS": str(self.calls_file)}
        env |= {"VERSION": "3.12", "VENV": "works", "UNAVAILABLE": "(none)", "FAILS": "(none)"} | variables
        command = [SHELL, str(self.root / "run"), *args]
        return subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )

    def calls(self) -> list[str]:
        """What Python was asked since the last look; installations without their paths."""
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return [call.replace(f"{self.root}/", "") for call in calls]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def error_line(result):
    assert result.returncode == 2, result
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "setting up" not in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_is_posix_short_and_executable():
    for shell in {SHELL, "/bin/sh"}:
        subprocess.run([shell, "-n", str(ROOT / "run")], check=True)
    lines = (ROOT / "run").read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    assert os.access(ROOT / "run", os.X_OK)


@pytest.mark.parametrize("args", [[], ["help"], ["--help"]])
def test_help_lists_the_commands_and_sets_nothing_up(checkout, args):
    result = checkout.run(*args)
    assert result.returncode == 0
    for command in ("quickstart", "train", "generate", "data", "test", "lint"):
        assert command in result.stdout
    assert not (checkout.root / ".venv").exists()


def test_unknown_command_is_refused_in_one_line(checkout):
    line = error_line(checkout.run("tarin", "--help"))
    assert "'tarin'" in line
    assert "train" in line
    assert not (checkout.root / ".venv").exists()


def test_first_call_installs_and_the_second_starts_at_once(checkout):
    assert checkout.run("train").returncode == 0
    venv, *installs, train = checkout.calls()
    assert venv == "-m venv .venv"
    assert train == "train.py"
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        assert installs[0] == "-m pip install -r requirements.lock"
        assert installs[1].startswith("-m pip install --no-deps --no-build-isolation -e ")
    else:
        assert installs[0].endswith("[dev]")
    assert checkout.run("train").returncode == 0
    assert checkout.calls() == ["train.py"]


def test_uv_is_preferred_to_pip(checkout):
    checkout.program("uv", '#!/bin/sh\necho "uv $*" >>"$CALLS"\n')
    assert checkout.run("train").returncode == 0
    _, *installs, _ = checkout.calls()
    assert installs
    assert all(call.startswith("uv pip install --compile-bytecode --python .venv/bin/python ") for call in installs)


@pytest.mark.parametrize(
    ("command", "script"),
    [
        *((name, name) for name in ("train", "generate", "interpolate", "directions", "translate", "export", "demo")),
        ("data", "dataset_tool"),
        ("instances", "instance_tool"),
        ("metrics", "calc_metrics"),
        ("plot", "plot_run"),
        ("project", "projector"),
        ("mix", "style_mixing"),
    ],
)
def test_options_exit_code_and_folder_pass_through(checkout, tmp_path, command, script):
    result = checkout.run(command, "--data=two words.zip", "", "$HOME *", cwd=tmp_path, FAILS="two words")
    assert result.returncode == 7
    folder, _, *arguments = result.stdout.splitlines()
    assert folder == f"in {tmp_path}"
    assert arguments == [f"<{checkout.root}/{script}.py>", "<--data=two words.zip>", "<>", "<$HOME *>"]
    assert (ROOT / f"{script}.py").is_file()


def test_convert_runs_the_module_in_the_callers_folder(checkout, tmp_path):
    result = checkout.run("convert", "two words.pkl", "out.pt", cwd=tmp_path, FAILS="stylegan2_icgan.convert")
    assert result.returncode == 7
    folder, _, *arguments = result.stdout.splitlines()
    assert folder == f"in {tmp_path}"
    assert arguments == ["<-m>", "<stylegan2_icgan.convert>", "<two words.pkl>", "<out.pt>"]


def test_test_runs_pytest_in_the_checkout(checkout, tmp_path):
    result = checkout.run("test", "-k", "a or b", cwd=tmp_path, FAILS="pytest")
    assert result.returncode == 7
    expected = [f"in {checkout.root}", "threads 1", "<-m>", "<pytest>", "<-n>", "<2>", "<-k>", "<a or b>"]
    assert result.stdout.splitlines() == expected


def test_lint_runs_every_check_and_names_those_that_failed(checkout):
    assert checkout.run("lint").returncode == 0
    checks = checkout.calls()[-5:]
    assert checks == [
        "-m ruff check",
        "-m ruff format --check",
        "-m mypy",
        "-m codespell_lib",
        "-m pytest -q tests/test_floors.py",
    ]
    result = checkout.run("lint", FAILS="ruff")
    assert result.returncode == 1
    assert result.stderr == "run: lint failed: ruff check, ruff format --check\n"
    assert checkout.calls() == checks


def test_quickstart_stops_where_training_fails(checkout):
    result = checkout.run("quickstart", FAILS="train.py")
    assert result.returncode == 7
    assert checkout.calls()[-1].startswith("train.py --cfg=tiny --cond=instance --data=datasets/digits.zip")


def test_interrupted_installation_is_made_anew(checkout):
    failed = checkout.run("train", UNAVAILABLE="requirements.lock" if "Linux" in platform.system() else "-e")
    assert "the installation failed" in error_line(failed)
    assert "-m venv .venv" in checkout.calls()
    assert checkout.run("train").returncode == 0
    assert checkout.calls()[0] == "-m venv .venv"
    assert checkout.run("train").returncode == 0
    assert checkout.calls() == ["train.py"]


def test_venv_without_its_python_is_made_anew(checkout):
    checkout.run("train")
    python = checkout.root / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python")
    checkout.calls()
    assert checkout.run("train").returncode == 0
    assert checkout.calls()[0] == "-m venv .venv"


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_changed_dependencies_are_installed_into_the_same_venv(checkout, name):
    checkout.run("train")
    checkout.calls()
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    assert checkout.run("train").returncode == 0
    calls = checkout.calls()
    assert any(call.startswith("-m pip install") for call in calls)
    assert "-m venv .venv" not in calls


def test_moved_checkout_is_installed_again(checkout):
    checkout.run("train")
    checkout.calls()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.run("train").returncode == 0
    assert any(call.startswith("-m pip install") for call in checkout.calls())


def test_venv_of_somebody_else_is_left_alone(checkout):
    foreign = checkout.root / ".venv/bin/python"
    foreign.parent.mkdir(parents=True)
    shutil.copy(checkout.python, foreign)
    assert "was not made by ./run" in error_line(checkout.run("train"))
    assert foreign.exists()
    assert checkout.calls() == []


@pytest.mark.parametrize("version", ["3.10", "3.14", "2.7"])
def test_unsuitable_python_is_refused_in_one_line(checkout, version):
    line = error_line(checkout.run("train", VERSION=version))
    assert "needs Python 3.11, 3.12 or 3.13" in line
    assert f"{checkout.python}={version}" in line
    assert not (checkout.root / ".venv").exists()


def test_named_python_that_does_not_run_is_refused_in_one_line(checkout):
    line = error_line(checkout.run("train", PYTHON="/nowhere/python3"))
    assert "found no /nowhere/python3" in line


def test_shims_with_nothing_behind_them_are_passed_over(checkout):
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        checkout.program(name, "#!/bin/sh\necho 'no such version' >&2\nexit 127\n")
    assert "found no python3 python3.13" in error_line(checkout.run("train", PYTHON=""))
    checkout.program("python3", STAND_IN.replace("$VERSION", "3.10"))
    checkout.program("python3.12", STAND_IN)
    assert checkout.run("train", PYTHON="").returncode == 0
    assert checkout.calls()[0] == "-m venv .venv"


def test_python_without_venv_gets_a_hint(checkout):
    assert "apt install python3-venv" in error_line(checkout.run("train", VENV="missing"))
    assert checkout.run("train").returncode == 0
