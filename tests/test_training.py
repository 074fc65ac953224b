"""Runs from the command line to the files they leave, on tiny networks."""

import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY_RUN, Refused, invoke, pattern_images, write_zip

import train
from torch_utils.command_line import UserError
from training import run_folder
from training.checkpoint import load_snapshot
from training.progress import Progress
from training.run_folder import new_run_folder

ROOT = Path(__file__).parents[1]


def only_run(outdir: Path) -> Path:
    (run,) = outdir.iterdir()
    return run


def tensors_of(path: Path) -> dict[str, Any]:
    """Everything in a training state that must be equal, flattened: name -> value."""
    flat: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}/{key}", inner)
        elif isinstance(value, list | tuple):
            for i, inner in enumerate(value):
                walk(f"{name}/{i}", inner)
        else:
            flat[name] = value

    walk("", torch.load(path, weights_only=True))
    return {name: value for name, value in flat.items() if name != "/progress/total_sec"}


def assert_equal_states(one: Path, other: Path) -> None:
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    assert sum(isinstance(value, torch.Tensor) for value in a.values()) > 100
    different = [
        name
        for name in a
        if not (torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name])
    ]
    assert not different


@pytest.mark.slow
@pytest.mark.parametrize("cond", ["none", "class", "instance", "instance+class"])
def test_a_run_leaves_what_was_promised(patterns_zip: Path, tmp_path: Path, cond: str) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--cond={cond}", f"--outdir={tmp_path / 'runs'}"]
    flags += ["--k=4"] if "instance" in cond else []
    result = invoke(
        train.main,
        *flags,
        "--kimg=1",
        "--tick=0.4",
        "--gamma=0.1",
        "--d-architecture=resnet",
        "--pl-weight=2",
        "--mirror",
    )
    assert result.exit_code == 0, result.output
    run = only_run(tmp_path / "runs")
    assert run.name == f"00000-patterns-{cond}-tiny-batch8"
    names = {file.name for file in run.iterdir() if not file.name.startswith("events")}
    assert list(run.glob("events.out.tfevents.*"))  # TensorBoard is installed with the tests
    assert names == {
        "training_options.json",
        "log.txt",
        "stats.jsonl",
        "reals.png",
        *(f"fakes00000{i}.png" for i in (0, 1)),
        *(f"network-snapshot-00000{i}.pt" for i in (0, 1)),
        *(f"training-state-00000{i}.pt" for i in (0, 1)),
    }
    snapshot = load_snapshot(run / "network-snapshot-000001.pt")
    assert snapshot.cur_nimg == 1000
    assert (snapshot.recipe.shape.c_dim, snapshot.recipe.shape.h_dim > 0) == (4 * ("class" in cond), "instance" in cond)
    assert len(snapshot.exemplars) == {"none": 0, "class": 4, "instance": 40, "instance+class": 40}[cond]
    assert set(snapshot.networks) == {"G", "D", "G_ema"}
    columns = 8 + (0 if cond == "none" else 4)
    with PIL.Image.open(run / "fakes000001.png") as sheet:
        assert sheet.size == (columns * 64 + (0 if cond == "none" else 32), (8 * 9 - 1) * 8)
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["Progress/kimg"]["mean"] for line in lines] == [0.4, 0.8, 1.0]
    assert {"num", "mean", "std"} == set(lines[0]["Loss/G/loss"])
    assert {"Loss/D/real", "Loss/scores/fake", "Loss/r1_penalty", "Timing/sec_per_kimg"} <= set(lines[0])
    assert all(np.isfinite(value["mean"]) for line in lines for key, value in line.items() if key != "timestamp")
    options = json.loads((run / "training_options.json").read_text())
    assert options["data"]["cond"] == cond
    assert options["sources"]["gamma"] == "flag"


def test_fakes_show_the_instance_and_its_neighbours(patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--cond=instance", "--k=4", f"--outdir={tmp_path / 'runs'}"]
    assert invoke(train.main, *flags, "--kimg=1", "--minutes=0.0001").exit_code == 0
    with PIL.Image.open(only_run(tmp_path / "runs") / "fakes000000.png") as picture:
        sheet = np.asarray(picture)
    real_tiles = {image.tobytes() for image in pattern_images(40)[0]}
    for row in range(8):
        shown = [sheet[row * 72 : row * 72 + 64 : 8, col * 64 : col * 64 + 64 : 8] for col in range(4)]
        assert all(tile.tobytes() in real_tiles for tile in shown)
        quarters = [
            np.argmax([tile[:4, :4].sum(), tile[:4, 4:].sum(), tile[4:, :4].sum(), tile[4:, 4:].sum()])
            for tile in shown
        ]
        assert len(set(quarters)) == 1  # neighbours are of the instance's kind


@pytest.mark.slow
def test_training_learns_the_patterns(patterns_zip: Path, tmp_path: Path) -> None:
    """A few hundred steps: samples of an instance are brightest in the quarter where the instance is."""
    from stylegan2_icgan.models import load_model
    from training.sampling import sample_images, z_from_seeds

    flags = [*TINY_RUN, f"--data={patterns_zip}", "--cond=instance", "--k=4", f"--outdir={tmp_path / 'runs'}"]
    result = invoke(
        train.main, *flags, "--kimg=3", "--tick=3", "--channel-max=16", "--channel-base=128", "--map-lr=0.1"
    )
    assert result.exit_code == 0, result.output
    model = load_model(only_run(tmp_path / "runs") / "network-snapshot-000003.pt", torch.device("cpu"))
    samples = sample_images(model.generator, z_from_seeds(range(40), 8), model.exemplars.condition)

    def quarter(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1).argmax(dim=1)

    assert (quarter(samples) == quarter(model.exemplars.images)).float().mean() > 0.8


def start(*args: str | Path, largest_file: int | None = None) -> "subprocess.Popen[str]":
    """train.py as a program of its own. A limit of the size of files stands in for a disk that is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *map(str, args)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=env, preexec_fn=limit, **pipes)


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


RESUMABLE = [
    "--cond=instance+class",
    "--k=4",
    "--kimg=0.4",
    "--tick=0.08",
    "--pl-weight=2",
    "--style-mixing=0.9",
    "--mirror-instances",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and a run of 50 steps without a break."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_zip(folder / "patterns.zip", *pattern_images(40))
    result = invoke(train.main, *TINY_RUN, f"--data={data}", *RESUMABLE, f"--outdir={folder / 'runs'}")
    assert result.exit_code == 0, result.output
    return data, only_run(folder / "runs")


def ticks(run: Path) -> list[float]:
    return [json.loads(line)["Progress/kimg"]["mean"] for line in (run / "stats.jsonl").read_text().splitlines()]


def assert_same_statistics(one: Path, other: Path) -> None:
    """Every figure but the clock's and the memory's, and but those of snapshots, which may be at other ticks."""
    of_snapshots = ("Progress/variety", "Progress/heed")
    for a, b in zip((one / "stats.jsonl").open(), (other / "stats.jsonl").open(), strict=True):
        first, second = (
            {
                k: v
                for k, v in json.loads(line).items()
                if k.split("/")[0] in ("Loss", "Progress") and k not in of_snapshots
            }
            for line in (a, b)
        )
        assert first == second


def forked(*args: str | Path) -> int:
    """Run train.py in a copy of this process, which need not import torch again; its number."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = invoke(train.main, *args).exit_code
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int | None:
    """Exit code, or None while it runs."""
    number, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if number else None


@pytest.mark.slow
def test_killed_twenty_times_runs_end_as_an_uninterrupted_one(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    """Kill -9 at a random moment or, every other time, while a snapshot or a state is being written."""
    data, whole = uninterrupted
    rng, half_written = random.Random(0), itertools.cycle(["*/.network-snapshot*.tmp", "*/.training-state*.tmp"])
    kills = in_writing = runs = 0
    while kills < 20:
        outdir = tmp_path / str(runs)
        code = None
        while code != 0:
            stated = list(outdir.glob("*/training-state-*.pt"))
            how = ["--resume=latest"] if stated else [*TINY_RUN, f"--data={data}", *RESUMABLE]
            child = forked(*how, f"--outdir={outdir}")
            moment, wanted = time.monotonic() + rng.uniform(0.05, 1.5), next(half_written) if kills % 2 else None
            while (code := ended(child)) is None:
                writing = wanted is not None and bool(list(outdir.glob(wanted)))
                if kills < 20 and (writing or (wanted is None and time.monotonic() > moment)):
                    os.kill(child, signal.SIGKILL)
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    kills, in_writing = kills + 1, in_writing + writing
                    break
                time.sleep(0.0005)
            assert code in (0, -signal.SIGKILL)
        runs += 1
        run = max(outdir.iterdir())  # earlier ones were killed before they had a state
        assert_equal_states(run / "training-state-000000.pt", whole / "training-state-000000.pt")
        assert ticks(run) == ticks(whole) == [0.08, 0.16, 0.24, 0.32, 0.4]
        assert_same_statistics(run, whole)
        assert not list(run.glob(".*"))  # what was half-written has gone
    assert in_writing >= 5


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_leave_and_nothing_is_lost(
    uninterrupted: tuple[Path, Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    data, whole = uninterrupted
    outdir = tmp_path / "runs"
    process = start(*TINY_RUN, "--snap=50", f"--data={data}", *RESUMABLE, f"--outdir={outdir}")
    wait_for(lambda: list(outdir.glob("*/stats.jsonl")) or process.poll() is not None)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    run = only_run(outdir)
    assert f"--resume={run}" in output
    assert "Traceback" not in output
    at = torch.load(next(run.glob("training-state-*.pt")), weights_only=True)["progress"]["cur_nimg"]
    assert at < 400, "the signal came after the end: nothing was tested"
    result = invoke(train.main, f"--resume={run}", "--snap=1")
    assert result.exit_code == 0, result.output
    assert_equal_states(run / "training-state-000000.pt", whole / "training-state-000000.pt")
    assert ticks(run) == ticks(whole)
    assert_same_statistics(run, whole)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_nothing_is_lost(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = uninterrupted
    outdir = tmp_path / "runs"
    flags = [*TINY_RUN, f"--data={data}", *RESUMABLE, f"--outdir={outdir}"]
    assert invoke(train.main, *flags, "--kimg=0.16").exit_code == 0
    state = only_run(outdir) / "training-state-000000.pt"
    before = state.read_bytes()
    process = start("--resume=latest", "--kimg=0.4", f"--outdir={outdir}", largest_file=len(before) - 1)
    output, _ = process.communicate(timeout=120)
    last = output.strip().splitlines()[-1]
    assert (process.returncode, "Traceback" in output) == (2, False), output
    assert last.startswith(f"Error: {only_run(outdir)}: ")
    assert "File too large" in last
    assert f"continue with --resume={only_run(outdir)}" in last
    assert state.read_bytes() == before
    assert invoke(train.main, "--resume=latest", "--kimg=0.4", f"--outdir={outdir}").exit_code == 0
    assert_equal_states(state, whole / "training-state-000000.pt")
    assert ticks(only_run(outdir)) == ticks(whole)


def test_clocks_that_jump_change_no_time_that_is_told(
    uninterrupted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of day goes back and forth by years; durations are measured by a clock that can't."""
    data, whole = uninterrupted
    years = itertools.cycle([0.0, 3e9, -1e8])
    monkeypatch.setattr(time, "time", lambda: next(years))
    flags = [*TINY_RUN, f"--data={data}", *RESUMABLE, f"--outdir={tmp_path / 'runs'}", "--minutes=10"]
    assert invoke(train.main, *flags).exit_code == 0
    monkeypatch.undo()
    run = only_run(tmp_path / "runs")
    assert_equal_states(run / "training-state-000000.pt", whole / "training-state-000000.pt")
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert all(0 < line["Timing/sec_per_tick"]["mean"] < 300 for line in lines)


def test_time_limit_stops_with_a_state_that_continues(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    outdir = tmp_path / "runs"
    flags = [*TINY_RUN, f"--data={data}", *RESUMABLE, f"--outdir={outdir}"]
    assert invoke(train.main, *flags, "--minutes=0.005").exit_code == 0
    assert invoke(train.main, "--resume=latest", f"--outdir={outdir}", "--minutes=10").exit_code == 0
    assert_equal_states(only_run(outdir) / "training-state-000000.pt", whole / "training-state-000000.pt")


def test_loader_processes_change_nothing(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    flags = [*TINY_RUN, f"--data={data}", *RESUMABLE, f"--outdir={tmp_path / 'runs'}"]
    assert invoke(train.main, *flags, "--workers=2", "--cache=none").exit_code == 0
    assert_equal_states(only_run(tmp_path / "runs") / "training-state-000000.pt", whole / "training-state-000000.pt")


def test_a_longer_run_is_a_continued_one(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = uninterrupted
    flags = [*TINY_RUN, f"--data={data}", *RESUMABLE, f"--outdir={tmp_path / 'runs'}"]
    assert invoke(train.main, *flags, "--kimg=0.6").exit_code == 0
    whole = only_run(tmp_path / "runs")
    again = tmp_path / "again"
    assert invoke(train.main, *flags, f"--outdir={again}").exit_code == 0
    assert invoke(train.main, "--resume=latest", f"--outdir={again}", "--kimg=0.6").exit_code == 0
    assert_equal_states(only_run(again) / "training-state-000000.pt", whole / "training-state-000000.pt")
    assert ticks(only_run(again)) == ticks(whole)


def test_a_run_that_ended_between_two_ticks_repeats_none_when_it_goes_on(patterns_zip: Path, tmp_path: Path) -> None:
    outdir = f"--outdir={tmp_path / 'runs'}"
    assert invoke(train.main, *TINY_RUN, f"--data={patterns_zip}", outdir, "--kimg=0.08").exit_code == 0
    assert invoke(train.main, "--resume=latest", outdir, "--kimg=0.12").exit_code == 0
    lines = (only_run(tmp_path / "runs") / "stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["Progress/tick"]["mean"] for line in lines] == [1, 2, 2.5, 3, 3.75]


def test_two_processes_do_not_train_one_run(
    patterns_zip: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "LEAVING_SEC", 0.1)
    outdir = f"--outdir={tmp_path / 'runs'}"
    assert invoke(train.main, *TINY_RUN, f"--data={patterns_zip}", outdir, "--kimg=0.032").exit_code == 0
    run = only_run(tmp_path / "runs")
    before = (run / "stats.jsonl").read_text()
    with run_folder.alone(run):
        line = refused(train.main, "--resume=latest", outdir, "--kimg=0.064")
    assert f"{run}: another process is training this run; stop that one first" in line
    assert (run / "stats.jsonl").read_text() == before
    older = run / "training-state-000000.pt"
    (run / "training-state-000001.pt").touch()  # saved by another one, after this one had read its state
    with pytest.raises(UserError, match="trained this run further; resume it again"), run_folder.alone(run, older):
        pass
    (run / "training-state-000001.pt").unlink()
    assert invoke(train.main, "--resume=latest", outdir, "--kimg=0.064").exit_code == 0
    assert not (run / ".lock").exists()

    def full(*arguments: object, **how: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "hold", full)
    assert "No space left on device; what was written before is whole" in refused(train.main, "--resume=latest", outdir)


def test_a_line_whose_mean_was_rounded_stays(tmp_path: Path) -> None:
    """Of three processes that all say 0.048."""
    file = tmp_path / "stats.jsonl"
    lines = [json.dumps({"Progress/kimg": {"mean": kimg}}) + "\n" for kimg in (0.024, (0.048 * 3) / 3, 0.056)]
    assert json.loads(lines[1])["Progress/kimg"]["mean"] > 0.048
    file.write_text("".join(lines))
    Progress(tmp_path, 1.0, 48)
    assert file.read_text() == "".join(lines[:2])


def test_rounds_change_nothing_but_rounding(patterns_zip: Path, tmp_path: Path) -> None:
    """--batch-gpu: the same images, conditions and noise in smaller rounds; equal but for the minibatch statistic."""
    results = []
    for name, flags in {"whole": [], "rounds": ["--batch-gpu=4"]}.items():
        common = [
            *TINY_RUN,
            f"--data={patterns_zip}",
            "--cond=class",
            "--mbstd-group=1",
            "--kimg=1",
            "--minutes=0.0001",
        ]
        assert invoke(train.main, *common, *flags, f"--outdir={tmp_path / name}").exit_code == 0
        state = next(only_run(tmp_path / name).glob("training-state-*.pt"))
        results.append(torch.load(state, weights_only=True))
    assert results[0]["progress"]["cur_nimg"] == results[1]["progress"]["cur_nimg"] == 8
    # The generator, whose step comes first; noise is drawn anew in every round, but its strength begins at 0.
    one, other = (
        torch.cat([w.flatten() for name, w in result["members"]["G"].items() if not name.endswith("noise_strength")])
        for result in results
    )
    # Adam's first step is lr * sign: a weight may only differ where its gradient is next to nothing.
    assert torch.isclose(one, other, atol=1e-5).float().mean() > 0.99


def test_dry_run_prints_and_writes_nothing(patterns_zip: Path, tmp_path: Path, refused: Refused) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--cond=class", f"--outdir={tmp_path / 'runs'}", "-n"]
    result = invoke(train.main, *flags)
    assert result.exit_code == 0
    assert not (tmp_path / "runs").exists()
    start_of_tables = result.output.index("\n\nG ")
    assert json.loads(result.output[:start_of_tables])["model"]["z_dim"] == 8
    assert "synthesis.b8" in result.output
    assert "GiB" in result.output.splitlines()[-1]
    assert "for --kimg=" in result.output.splitlines()[-1]
    assert "is not a multiple of the 3 processes" in refused(train.main, *flags, "--gpus=3")


def test_output_in_a_pipe_is_plain_lines(patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}", "--kimg=0.8", "--tick=0.2"]
    output = invoke(train.main, *flags).output
    assert "\x1b" not in output
    assert [line.split()[3] for line in output.splitlines() if line.startswith("tick")] == ["0.2", "0.4", "0.6", "0.8"]
    assert (only_run(tmp_path / "runs") / "log.txt").read_text().splitlines() == [
        line for line in output.splitlines() if not line.startswith("Continue with")
    ]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_bad_data_is_refused(tmp_path: Path, patterns_zip: Path, refused: Refused) -> None:
    outdir = f"--outdir={tmp_path / 'runs'}"
    assert "--data is missing" in refused(train.main, outdir)
    assert "does not exist" in refused(train.main, outdir, "--data=nothing.zip")
    (tmp_path / "text.zip").write_text("text")
    assert "text.zip can't be read as a zip" in refused(train.main, outdir, f"--data={tmp_path / 'text.zip'}")
    write_zip(tmp_path / "none.zip", [])
    assert "holds no images" in refused(train.main, outdir, f"--data={tmp_path / 'none.zip'}")
    write_zip(tmp_path / "odd.zip", [np.zeros((12, 12), np.uint8)] * 3)
    assert "power of two" in refused(train.main, outdir, f"--data={tmp_path / 'odd.zip'}")
    write_zip(tmp_path / "unlabelled.zip", pattern_images(8)[0])
    assert "has none" in refused(train.main, outdir, f"--data={tmp_path / 'unlabelled.zip'}", "--cond=class")
    message = refused(train.main, outdir, f"--data={patterns_zip}", "--cond=instance", "--k=40", "--cfg=tiny")
    assert "--k=40" in message
    assert "expected 1 <= k <= 39" in message
    assert not (tmp_path / "runs").exists()


def test_bad_flags_are_refused(patterns_zip: Path, refused: Refused, tmp_path: Path) -> None:
    data = f"--data={patterns_zip}"
    assert "--gamma" in refused(train.main, data, "--gama=1")
    assert "Did you mean 'instance'" in refused(train.main, data, "--cond=instnce")
    assert "Did you mean 'tiny'" in refused(train.main, data, "--cfg=tinny")
    assert "'many' is not a valid integer" in refused(train.main, data, "--batch=many")
    assert "is not a multiple" in refused(train.main, data, "--cfg=tiny", "--batch=8", "--batch-gpu=3")
    if not torch.cuda.is_available():
        assert "--device=cuda" in refused(train.main, data, "--cfg=tiny", "--device=cuda")
    (tmp_path / "file").write_text("")
    assert "--outdir" in refused(train.main, data, *TINY_RUN, f"--outdir={tmp_path / 'file'}")


def test_resume_is_refused_loudly(uninterrupted: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    _, whole = uninterrupted
    outdir = f"--outdir={tmp_path}"
    assert "there is no run" in refused(train.main, "--resume=latest", outdir)
    assert "does not exist" in refused(train.main, "--resume=nowhere", outdir)
    run = tmp_path / whole.name
    run.mkdir()
    assert "holds no training-state" in refused(train.main, "--resume=latest", outdir)
    for file in whole.iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    assert "--cfg=tiny given with --resume" in refused(train.main, f"--resume={run}", "--cfg=tiny")
    assert "--gamma=5.0 given with --resume" in refused(train.main, f"--resume={run}", "--gamma=5")
    other = write_zip(tmp_path / "other.zip", *pattern_images(40, seed=1))
    message = refused(train.main, f"--resume={run}", f"--data={other}")
    assert f"--resume={run} --data={other}: these " in message
    assert "are not the 40 that the run was trained on" in message
    newest = run / "training-state-000000.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    message = refused(train.main, f"--resume={run}", "--kimg=0.6")
    assert newest.name in message  # named, and no older state taken in silence
    options = run / "training_options.json"
    content = json.loads(options.read_text())
    options.write_text(json.dumps(content | {"loop": content["loop"] | {"bathc": 3}}))
    assert "unknown option 'bathc'. Did you mean 'batch'?" in refused(train.main, f"--resume={run}")
    options.write_text("{")
    assert "can't be read" in refused(train.main, f"--resume={run}")


def test_a_number_that_another_start_took_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts look at the folder at the same time, and both see what was there before."""
    taken = [new_run_folder(tmp_path, "digits") for _ in range(2)]
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(taken[:1]))
    assert new_run_folder(tmp_path, "digits") == tmp_path / "00002-digits"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder can be made there"):
        new_run_folder(tmp_path / "file", "digits")
