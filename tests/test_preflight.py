"""What is refused before processes meet: one line, and nothing started."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_BIGGAN, TINY_RUN, Refused, invoke, pattern_images, write_zip

import train
from metrics.inception import WEIGHTS
from stylegan2_icgan.evaluation import during
from stylegan2_icgan.options import resolve
from stylegan2_icgan.preflight import check_networks, check_run, without_weights
from stylegan2_icgan.presets import PRESETS
from stylegan2_icgan.systems import SYSTEMS
from torch_utils.command_line import UserError
from torch_utils.published import Download
from training.config import LoopOptions
from training.dataset import ImageFolderDataset
from training.run_folder import snapshots_in, states_in
from training.system import DataShape

NEEDED = {"adc": {"cond": "class"}, "csgan": {"data_b": "b.zip"}, "wgan": {}, "selfcond": {}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and a run of one step of StyleGAN2."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_zip(folder / "patterns.zip", *pattern_images(40))
    flags = [*TINY_RUN, f"--data={data}", f"--outdir={folder / 'runs'}", "--minutes=0.0001"]
    assert invoke(train.main, *flags).exit_code == 0
    (run,) = (folder / "runs").iterdir()
    return data, run


@pytest.fixture(params=[1, 2])
def early(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> Callable[..., str]:
    """The line by which train.py refuses, as one process or with --gpus=2, before any is started or anything made."""

    @contextlib.contextmanager
    def together():
        pytest.fail("processes meet")
        yield

    monkeypatch.setattr(train, "relaunch", lambda *_: pytest.fail("processes are started"))
    monkeypatch.setattr(train, "together", together)
    return lambda *flags: refused(train.main, *flags, *([] if request.param == 1 else ["--gpus=2"]))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--freeze-d=99"], "--freeze-d=99: the discriminator has 6 layers; expected 1 to 5"),
        (["--cond=instance", "--k=4", "--freeze-d=99"], "--freeze-d=99: the discriminator has 9 layers"),
        (["--cond=instance", "--k=40"], "--k=40, but 40 images of --data"),
        (["--cond=instance", "--k=10", "--subset=8"], "--k=10, but 8 images of --data"),
        (["--cond=instance", "--k=4", "--extractor=file"], "--extractor=file takes features made elsewhere: name"),
        (["--subset=41"], "--subset=41, but --data="),
        (["--metrics=fid10k_full", "--keep-best=foo"], "--keep-best=foo is not measured by --metrics=fid10k_full"),
        (["--metrics=fid10k", "--metrics-weights=x.pth"], "--metrics-weights=x.pth does not exist"),
        (["--metrics=fid10k", "--metrics-detector=incep"], "--metrics-detector=incep is unknown"),
        (["--clusters=3"], "--clusters=3 given with --cond=none"),
        (["--data-b=b.zip"], "--data-b=b.zip: stylegan2 learns from single images"),
        (["--cache=gpu"], "--cache=gpu, but this run trains on the CPU"),
    ],
)
def test_what_can_not_work_is_one_line_and_starts_nothing(
    early: Callable[..., str], patterns_zip: Path, tmp_path: Path, flags: list[str], says: str
) -> None:
    line = early(*TINY_RUN, f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}", *flags)
    assert says in line
    assert not (tmp_path / "runs").exists()


def test_a_snapshot_of_another_system_is_refused_early(early: Callable[..., str], whole: tuple[Path, Path]) -> None:
    data, run = whole
    line = early(*TINY_BIGGAN, f"--data={data}", f"--init-from={snapshots_in(run)[-1]}")
    assert "nothing of its G fits this G; expected a snapshot of the same system and channels" in line


@pytest.mark.parametrize("cond", ["none", "class", "instance", "cluster"])
def test_a_snapshot_that_fits_is_let_through(
    whole: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, cond: str
) -> None:
    data, run = whole
    monkeypatch.setattr(train, "relaunch", lambda *_: 77)
    flags = [*TINY_RUN, f"--data={data}", f"--cond={cond}", f"--init-from={snapshots_in(run)[-1]}", "--freeze-d=2"]
    flags += {"instance": ["--k=4"], "cluster": ["--clusters=4"]}.get(cond, [])
    assert invoke(train.main, *flags, "--gpus=2").exit_code == 77


def test_a_state_that_is_none_is_refused_early(
    early: Callable[..., str], whole: tuple[Path, Path], tmp_path: Path
) -> None:
    _, run = whole
    snapshot = snapshots_in(run)[-1]
    assert f"--resume={snapshot} is not a training state (training-state-*.pt)" in early(f"--resume={snapshot}")
    copy = tmp_path / run.name
    copy.mkdir()
    for file in run.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (state,) = states_in(copy)
    state.write_bytes(state.read_bytes()[:-100])
    assert f"--resume={state} can't be read: damaged" in early(f"--resume={copy}")


def test_a_run_that_was_started_with_too_large_a_subset_goes_on(patterns_zip: Path) -> None:
    options, dataset = resolve("tiny", {"subset": 50}, 8), ImageFolderDataset(patterns_zip)
    with pytest.raises(UserError, match=r"--subset=50, but --data=.* has 40 images; expected 1 to 40, or leave it out"):
        check_run(options, dataset, None, torch.device("cpu"), new=True)
    check_run(options, dataset, None, torch.device("cpu"), new=False)


# -- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", PRESETS)
def test_layers_of_every_preset_are_counted_without_weights(cfg: str) -> None:
    resolution = PRESETS[cfg].resolution or 64
    needed = NEEDED.get(PRESETS[cfg].system, {"cond": "instance"})
    options = resolve(cfg, needed | {"freeze_d": 9999}, resolution)
    dataset = SimpleNamespace(resolution=resolution, num_channels=3, c_dim=10 if "class" in options.data.cond else 0)
    with pytest.raises(UserError, match=r"--freeze-d=9999: the discriminator has \d+ layers"):
        check_networks(options, dataset, None)


@pytest.mark.parametrize("cfg", [name for name in PRESETS if name.endswith("tiny")])
def test_networks_without_weights_have_the_shapes_of_those_with(cfg: str) -> None:
    options, shape = resolve(cfg, NEEDED.get(PRESETS[cfg].system, {}), 32), DataShape(32, 3, 4, 0)
    for name, network in without_weights(options, shape).items():
        there = SYSTEMS[options.system].networks[name](options.model, shape)
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in there.state_dict().items()
        }
        assert all(parameter.is_meta for parameter in network.parameters() if parameter.ndim > 1)


# -- weights of detectors ------------------------------------------------------------------------------------------


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """On a machine that has no weights; what is fetched."""
    seen: list[str] = []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(Download, "fetch", lambda self: seen.append(self.address))
    return seen


@pytest.mark.parametrize("metric", ["fid10k_full", "lpips_instance5k"])
def test_weights_that_can_not_be_had_are_missed_early(
    early: Callable[..., str], patterns_zip: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str], metric: str
) -> None:
    monkeypatch.setattr(Download, "unreachable", lambda self: "no network")
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--metrics={metric}"]
    line = early(*flags, *(["--metrics-detector=random"] if metric.startswith("lpips") else []))
    assert line.startswith(f"Error: --metrics={metric}: ")
    assert "not on this machine and can't be fetched (no network)" in line
    assert not fetched


def test_weights_that_can_be_fetched_are_left_to_the_run(monkeypatch: pytest.MonkeyPatch, fetched: list[str]) -> None:
    monkeypatch.setattr(Download, "unreachable", lambda self: "")
    monkeypatch.setattr(during, "pick_detector", lambda *_: pytest.fail("made"))
    during.check_measure(LoopOptions(metrics="fid10k_full,ppl2_wend"))
    assert not fetched


def test_a_detector_whose_weights_are_here_is_made(monkeypatch: pytest.MonkeyPatch, fetched: list[str]) -> None:
    made: list[str] = []
    monkeypatch.setattr(Download, "cached", lambda self: self.path if self == WEIGHTS else None)
    monkeypatch.setattr(Download, "unreachable", lambda self: "")
    monkeypatch.setattr(during, "pick_detector", lambda flags, *_: made.append(flags.detector))
    for detector in (None, "vgg16", "random"):
        during.check_measure(LoopOptions(metrics="fid10k", metrics_detector=detector))
    assert made == ["inception", "random"]
