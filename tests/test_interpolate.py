import math
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Refused, invoke

import generate
import interpolate
from stylegan2_icgan.models import load_model
from stylegan2_icgan.using import video
from stylegan2_icgan.using.walks import slerp
from torch_utils.command_line import UserError
from training.condition import Condition
from training.sampling import sample_images, z_from_seeds


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither ffmpeg nor PyAV."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(video, "_pyav", lambda: None)


@pytest.mark.parametrize(
    ("kind", "flags", "points"),
    [
        ("none", ["--seeds=0,5,6"], "seed0000 seed0005 seed0006"),
        ("class", ["--seeds=0", "--instances=exemplars:1,3"], "class00001-seed0000 class00003-seed0000"),
        ("instance", ["--seeds=2", "--rows=4,9"], "exemplar00004-seed0002 exemplar00009-seed0002"),
        ("instance", ["--seeds=2,3", "--rows=4,9", "--path=linear"], "exemplar00004-seed0002 exemplar00009-seed0003"),
        ("instance", ["--seeds=2,3", "--rows=9", "--space=w"], "exemplar00009-seed0002 exemplar00009-seed0003"),
        ("instance+class", ["--seeds=1", "--rows=0,1"], "exemplar00000-seed0001 exemplar00001-seed0001"),
        ("biggan", ["--seeds=1,2", "--rows=0,1"], "exemplar00000-seed0001 exemplar00001-seed0002"),
    ],
)
def test_a_walk_passes_through_the_images_of_its_points(
    trained: dict[str, Path], tmp_path: Path, kind: str, flags: list[str], points: str
) -> None:
    network = [f"--network={trained[kind]}", "--trunc=0.8"]
    walk = [*network, *flags, "--frames=3", "--format=frames", f"--outdir={tmp_path / 'walk'}"]
    result = invoke(interpolate.main, *walk)
    assert result.exit_code == 0, result.output
    own = [flag for flag in flags if not flag.startswith(("--path", "--space"))]
    assert invoke(generate.main, *network, *own, f"--outdir={tmp_path / 'own'}").exit_code == 0
    frames, names = sorted((tmp_path / "walk" / "frames").iterdir()), points.split()
    assert [frame.name for frame in frames] == [f"{i:05d}.png" for i in range(3 * (len(names) - 1) + 1)]
    for number, point in enumerate(names):
        assert frames[3 * number].read_bytes() == (tmp_path / "own" / f"{point}.png").read_bytes()
    between = {frame.read_bytes() for frame in frames}
    assert len(between) > len(names)


def test_classes_are_mixed_linearly_on_the_way(trained: dict[str, Path], tmp_path: Path) -> None:
    network = f"--network={trained['class']}"
    flags = [network, "--seeds=0", "--instances=exemplars:1,3", "--frames=2", "--format=frames", f"--outdir={tmp_path}"]
    assert invoke(interpolate.main, *flags).exit_code == 0
    generator = load_model(trained["class"], torch.device("cpu")).generator
    half = Condition(torch.tensor([[0, 0.5, 0, 0.5]]), torch.zeros(1, 0))
    expected = sample_images(generator, z_from_seeds([0], generator.z_dim), half)[0, 0].numpy()
    assert np.array_equal(pixels(tmp_path / "frames" / "00001.png"), expected)


def test_arcs_turn_evenly_and_begin_and_end_exactly() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(1, 64), 3 * torch.randn(1, 64)
    assert torch.equal(slerp(a, b, 0), a)
    assert torch.equal(slerp(a, b, 1), b)
    a, b = a / a.norm(), b / b.norm()
    whole = torch.acos((a * b).sum()).item()
    for t in (0.25, 0.5, 0.9):
        at = slerp(a, b, t)
        assert math.isclose(at.norm().item(), 1, rel_tol=1e-5)
        assert math.isclose(torch.acos((a * at).sum()).item(), t * whole, rel_tol=1e-3)
    assert torch.equal(slerp(a, a, 0.3), a)
    with pytest.raises(UserError, match="opposite"):
        slerp(a, -a, 0.5)


def test_a_loop_returns_and_walks_stand_side_by_side(trained: dict[str, Path], tmp_path: Path) -> None:
    common = [f"--network={trained['none']}", "--frames=2", "--format=frames", "--loop"]
    for name, seeds, grid in (("one", "0,1", "1x1"), ("two", "2,3", "1x1"), ("both", "0-3", "2x1")):
        flags = [*common, f"--seeds={seeds}", f"--grid={grid}", f"--outdir={tmp_path / name}"]
        assert "4 frames" in invoke(interpolate.main, *flags).output
    for number in range(4):
        one, two, both = (pixels(tmp_path / name / "frames" / f"{number:05d}.png") for name in ("one", "two", "both"))
        assert np.array_equal(both, np.concatenate([one, two], axis=1))
    there, end, back = (pixels(tmp_path / "one" / "frames" / f"0000{number}.png") for number in (1, 2, 3))
    assert np.array_equal(there, back)  # of two images
    assert not np.array_equal(there, end)


def test_frames_of_an_earlier_walk_do_not_stay(trained: dict[str, Path], tmp_path: Path) -> None:
    common = [f"--network={trained['none']}", "--format=frames", "--seeds=0,1", f"--outdir={tmp_path}"]
    for frames in (9, 2):
        assert invoke(interpolate.main, *common, f"--frames={frames}").exit_code == 0
    assert len(list((tmp_path / "frames").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


@pytest.mark.usefixtures("no_encoder")
def test_gif_is_written_where_there_is_no_encoder(trained: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    flags = [f"--network={trained['none']}", "--seeds=0,1", "--frames=4", "--fps=25", f"--outdir={tmp_path}"]
    assert invoke(interpolate.main, *flags).exit_code == 0
    with PIL.Image.open(tmp_path / "walk.gif") as gif:
        assert (gif.format, gif.n_frames, gif.size) == ("GIF", 5, (64, 64))
        assert gif.info["duration"] == 40
        assert gif.info["loop"] == 0
    message = refused(interpolate.main, *flags, "--format=mp4")
    assert "ffmpeg" in message
    assert "pip install av" in message
    assert "--format=gif" in message


FFMPEG = """#!/bin/sh
echo "$@" >"$0.said"
for last; do :; done
cat >"$last"
"""


def test_mp4_is_what_ffmpeg_makes_of_the_frames(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(FFMPEG)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "out"
    flags = [f"--network={trained['none']}", "--seeds=0,1", "--frames=4", "--fps=12", f"--outdir={out}"]
    assert invoke(interpolate.main, *flags).exit_code == 0
    raw = np.fromfile(out / "walk.mp4", np.uint8).reshape(5, 64, 64, 3)
    assert invoke(interpolate.main, *flags, "--format=frames").exit_code == 0
    assert np.array_equal(raw[2, ::8, ::8, 1], pixels(out / "frames" / "00002.png"))
    said = Path(f"{program}.said").read_text()
    assert "-s 64x64 -r 12 " in said
    assert "yuv420p" in said

    (out / "walk.mp4").write_bytes(b"older")
    program.write_text("#!/bin/sh\necho Unknown encoder libx264 >&2\nexit 8\n")
    assert "ffmpeg failed (Unknown encoder libx264)" in refused(interpolate.main, *flags)
    assert (out / "walk.mp4").read_bytes() == b"older"
    assert sorted(path.name for path in out.iterdir()) == ["frames", "walk.mp4"]


def test_mp4_by_pyav(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    flags = [f"--network={trained['none']}", "--seeds=0,1", "--frames=4", f"--outdir={tmp_path}"]
    assert invoke(interpolate.main, *flags, "--format=mp4").exit_code == 0
    with av.open(str(tmp_path / "walk.mp4")) as container:
        frames = list(container.decode(container.streams.video[0]))
    assert [(frame.width, frame.height) for frame in frames] == [(64, 64)] * 5


@pytest.mark.usefixtures("no_encoder")
def test_wrong_input_is_refused(trained: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    net = [f"--network={trained['instance']}", f"--outdir={tmp_path / 'out'}"]
    assert "2 seeds" in refused(interpolate.main, *net, "--seeds=0,1", "--rows=1-3")
    assert "1 images to walk through" in refused(interpolate.main, *net, "--seeds=0")
    assert "--grid=3x1" in refused(interpolate.main, *net, "--seeds=0-3", "--grid=3x1")
    assert "--grid=2" in refused(interpolate.main, *net, "--grid=2")
    assert "--frames=0" in refused(interpolate.main, *net, "--frames=0")
    assert "--fps=51" in refused(interpolate.main, *net, "--fps=51")
    assert "other noise" in refused(interpolate.main, *net, "--noise-mode=random")
    assert "--path and --space are both given" in refused(interpolate.main, *net, "--space=w", "--path=linear")
    assert "without w" in refused(interpolate.main, f"--network={trained['biggan']}", "--space=w")
    assert not (tmp_path / "out").exists()
    h_dim = load_model(trained["instance"], torch.device("cpu")).recipe.shape.h_dim
    np.save(tmp_path / "opposite.npy", np.stack([np.ones(h_dim), -np.ones(h_dim)]))
    opposite = [*net, f"--instance-feats={tmp_path / 'opposite.npy'}", "--rows=0,1", "--seeds=0"]
    assert "opposite" in refused(interpolate.main, *opposite)
    assert list((tmp_path / "out").iterdir()) == []
