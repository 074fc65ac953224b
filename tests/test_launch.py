"""What --gpus=N starts: exit codes, signals, and an end for all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY_RUN, Refused, invoke

import train

LAUNCHER = """
import sys
from pathlib import Path
from torch_utils import launch
launch.GRACE_SEC = 0.5
sys.exit(launch.relaunch(Path(sys.argv[1]), 3))
"""
ROOT = Path(__file__).parents[1]


def start(tmp_path: Path, child: str) -> "subprocess.Popen[str]":
    """Three processes that run `child`."""
    script = tmp_path / "child.py"
    script.write_text(
        f"import os, signal, sys, time\nfrom pathlib import Path\nrank = int(os.environ['RANK'])\n{child}"
    )
    command = [sys.executable, "-c", LAUNCHER, str(script), str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    ("child", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(2)", 2),
        ("if rank == 1: sys.exit(5)\ntime.sleep(60)", 5),
        ("if rank == 2: os.kill(os.getpid(), 9)\ntime.sleep(60)", 137),
        ("assert sys.argv[1:2] == [str(Path(__file__).resolve())] and os.environ['WORLD_SIZE'] == '3'", 0),
    ],
)
def test_the_exit_code_is_that_of_the_first_that_failed_and_nobody_stays(tmp_path: Path, child: str, code: int) -> None:
    began = time.monotonic()
    process = start(tmp_path, child)
    output, _ = process.communicate(timeout=50)
    assert (process.returncode, output) == (code, "")
    assert time.monotonic() - began < 40


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_passed_on_and_waited_for(tmp_path: Path, number: signal.Signals, code: int) -> None:
    child = f"""
def save(number, frame):
    time.sleep(1)  # longer than the others are given after a failure
    Path(sys.argv[2], f"saved{{rank}}").touch()
    sys.exit(128 + number)
signal.signal({int(number)}, save)
Path(sys.argv[2], f"here{{rank}}").touch()
time.sleep(60)
"""
    process = start(tmp_path, child)
    while len(list(tmp_path.glob("here*"))) < 3:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    output, _ = process.communicate(timeout=50)
    assert (process.returncode, output) == (code, "")
    assert len(list(tmp_path.glob("saved*"))) == 3


def test_what_can_not_work_is_refused_by_the_one_that_starts_the_others(
    patterns_zip: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "relaunch", lambda script, processes: 77)
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}", "--gpus=2"]
    assert "--batch=9 is not a multiple of the 2 processes" in refused(train.main, *flags, "--batch=9")
    assert "--init-from=none.pt does not exist" in refused(train.main, *flags, "--init-from=none.pt")
    huge = refused(train.main, *flags, "--seed=99999999999999999999999")
    assert "--seed=99999999999999999999999: expected 0 to" in huge
    assert invoke(train.main, *flags).exit_code == 77


def test_processes_that_were_not_told_where_to_meet_say_so(
    patterns_zip: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    line = refused(train.main, *TINY_RUN, f"--data={patterns_zip}")
    assert "rank 0 of 2 did not meet the others at None" in line


def test_an_estimate_for_several_processes_is_of_the_share_of_each(
    patterns_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.estimate._measure", lambda system, source, rows, *_: (rows / 8, rows * 2**30))
    monkeypatch.setattr("training.estimate.memory_gb", lambda device: 0.0)
    flags = [*TINY_RUN, f"--data={patterns_zip}", "-n"]
    one, four = (invoke(train.main, *flags, *words).output for words in ([], ["--gpus=4", "--batch-gpu=2"]))
    assert "Estimated from one round: 8.00 GiB; 125.0 s a thousand images" in one
    assert "Estimated from one round: 2.00 GiB; 31.2 s a thousand images" in four


def test_who_hangs_between_two_steps_is_waited_for_so_long_and_work_for_longer(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "import sys, time\n"
        "from datetime import timedelta\n"
        "from torch_utils import distributed\n"
        "distributed.SAVED_WITHIN, distributed.ROLL_CALL_SEC = timedelta(seconds=2), 0.5\n"
        "with distributed.together():\n"
        "    for brisk in (False, True):\n"
        "        time.sleep(4 * distributed.rank())\n"
        "        try:\n"
        "            distributed.barrier(brisk)\n"
        "        except distributed.Departed as error:\n"
        "            print(brisk, error, flush=True)\n"
        "            raise SystemExit(3)\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run([sys.executable, *torchrun], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert result.stdout.splitlines()[0].startswith("True rank 1 of the 2 processes (0 to 1) has left"), result.stdout


STAND_INS = {
    "scontrol": 'echo "first-machine"',
    "srun": 'for n in 0 1 2; do SLURM_PROCID=$n SLURM_LOCALID=$n "$@" || exit; done',
    # The first task has made its folder, and a state in it, before the second one starts.
    "python": """echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $*" >> said
run=runs/photos/00007-new
if [[ "$RANK $*" == "0 "*--data=* ]]; then mkdir $run; touch $run/training-state-000000.pt; fi""",
}


def test_the_recipe_for_slurm_starts_a_run_and_then_goes_on(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (recipe,) = (block for block in page.split("```sh\n") if block.startswith("#!/bin/bash\n#SBATCH"))
    (tmp_path / "recipe.sh").write_text(recipe.partition("```")[0])
    (tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    told = {"SLURM_JOB_NODELIST": "x", "SLURM_NTASKS": "3", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    (tmp_path / "runs" / "photos" / "00006-killed-before-its-first-state").mkdir(parents=True)

    def tasks() -> list[list[str]]:
        """What each task was told, after its rank."""
        subprocess.run(["bash", "recipe.sh"], cwd=tmp_path, env=os.environ | told, check=True)
        lines = (tmp_path / "said").read_text().splitlines()
        (tmp_path / "said").unlink()
        assert [line.split()[:4] for line in lines] == [[str(n), str(n), "3", "first-machine"] for n in range(3)]
        return [line.split()[4:] for line in lines]

    begin = ["train.py", "--outdir=runs/photos", "--data=photos.zip", "--cond=instance", "--cfg=paper256"]
    assert tasks() == [begin] * 3
    assert tasks() == [["train.py", "--resume=runs/photos/00007-new"]] * 3
    train.main.make_context("train.py", begin[1:])  # flags that there are
