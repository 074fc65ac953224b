"""projector.py as a user runs it, and the parts it is made of."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Refused, invoke, pattern_images

import generate
import projector
from metrics.lpips import Lpips
from stylegan2_icgan.models import load_model
from stylegan2_icgan.projection.distances import LpipsDistance, PyramidDistance, make_distance
from stylegan2_icgan.projection.files import Projection, read_projection, render, save_projection
from stylegan2_icgan.projection.latents import style_statistics
from stylegan2_icgan.projection.noise_maps import autocorrelation, maps_in_place, normalise_, own_maps, synthesise
from stylegan2_icgan.projection.search import Clip, learning_rate, style_noise
from torch_utils.published import Download
from training.condition import Condition
from training.sampling import from_uint8

CPU = torch.device("cpu")
# How to make an image with a model of each kind, and what the projector is then told.
MADE_BY = {
    "none": ([], []),
    "class": (["--class=1"], ["--class=1"]),
    "instance": (["--rows=2"], ["--row=2"]),  # and --instance-feats
    "instance+class": (["--rows=2", "--class=3"], ["--class=3"]),  # h is made of the target
}


def flags_for(cond: str, trained: dict[str, Path]) -> list[str | Path]:
    feats = trained["data"].with_name("patterns.instances") / "features.npy"
    return [*MADE_BY[cond][1], *([f"--instance-feats={feats}"] if cond == "instance" else [])]


@pytest.fixture(scope="module")
def made(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Images that each model made itself, with seeds 3 and 4."""
    files = {}
    for cond, (flags, _) in MADE_BY.items():
        outdir = tmp_path_factory.mktemp("made")
        run = [f"--network={trained[cond]}", "--seeds=3-4", f"--outdir={outdir}", "--device=cpu", *flags]
        assert invoke(generate.main, *run).exit_code == 0
        files[cond] = sorted(outdir.glob("*seed*.png"))
    return files


def project(network: Path, outdir: Path, *flags: str | Path) -> dict[str, np.ndarray]:
    """Run projector.py; the arrays it writes."""
    result = invoke(projector.main, f"--network={network}", f"--outdir={outdir}", "--device=cpu", *flags)
    assert result.exit_code == 0, result.output
    with np.load(outdir / "projected_w.npz", allow_pickle=False) as content:
        return dict(content)


def options_of(arrays: dict[str, np.ndarray]) -> dict:
    return json.loads(str(arrays["options"]))


def rendered_again(network: Path, outdir: Path) -> list[bytes]:
    """What generate.py makes of a projection."""
    run = [f"--network={network}", f"--projected-w={outdir / 'projected_w.npz'}", f"--outdir={outdir / 'again'}"]
    assert invoke(generate.main, *run, "--device=cpu").exit_code == 0
    return [path.read_bytes() for path in sorted((outdir / "again").glob("*.png"))]


# The script.


@pytest.mark.parametrize("cond", MADE_BY)
def test_an_image_of_the_model_is_found_and_rendered_again(trained, made, tmp_path, cond):
    flags = [*flags_for(cond, trained), "--target", made[cond][0], "--steps=80"]
    arrays = project(trained[cond], tmp_path, *flags)
    options = options_of(arrays)
    (start,), (end,) = options["distance_start"], options["distance_end"]
    assert end < start / 3
    assert rendered_again(trained[cond], tmp_path) == [(tmp_path / "projection.png").read_bytes()]
    assert (tmp_path / "target.png").read_bytes() == made[cond][0].read_bytes()
    sheet = np.asarray(PIL.Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (64, 3 * 64 + 32)
    assert np.array_equal(sheet[::8, -64::8], np.asarray(PIL.Image.open(tmp_path / "projection.png")))
    assert options["distance"] == "pyramid"
    assert arrays["w"].dtype == np.float32
    assert "z" not in arrays


def test_targets_of_one_batch_do_not_depend_on_each_other(trained, made, tmp_path):
    flags = [*flags_for("instance+class", trained), "--steps=20", "--optimise-noise", "--target"]
    both = project(trained["instance+class"], tmp_path / "both", *flags, *made["instance+class"])
    for row, target in enumerate(made["instance+class"]):
        alone = project(trained["instance+class"], tmp_path / f"{row}", *flags, target)
        np.testing.assert_allclose(both["w"][row], alone["w"][0], atol=1e-4)
        names = [name for name in both if name.startswith("noise/")]
        assert len(names) == 3
        for name in names:
            np.testing.assert_allclose(both[name][row], alone[name][0], atol=1e-3)
    assert abs(both["w"][0] - both["w"][1]).max() > 0.1
    written = {path.name for path in (tmp_path / "both").iterdir()}
    stems = [f"-{row:02d}-{path.stem}.png" for row, path in enumerate(made["instance+class"])]
    pictures = {f"{kind}{stem}" for kind in ("target", "projection") for stem in stems}
    assert written == {*pictures, "sheet.png", "projected_w.npz"}


def test_the_seed_decides_everything(trained, made, tmp_path):
    run = ["--target", made["none"][0], "--steps=5"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        project(trained["none"], tmp_path / name, *run, f"--seed={seed}")
    a, b, c = ((tmp_path / name / "projected_w.npz").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_w_plus_has_a_style_for_each_layer_and_comes_nearer(trained, tmp_path):
    """To an image that the model did not make."""
    PIL.Image.fromarray(pattern_images(3)[0][2]).save(tmp_path / "real.png")
    ends = {}
    for space in ("w", "w+"):
        arrays = project(
            trained["none"], tmp_path / space, "--target", tmp_path / "real.png", f"--space={space}", "--steps=100"
        )
        w = arrays["w"][0]
        assert (abs(w - w[0]).max() > 0.01) == (space == "w+")
        (ends[space],) = options_of(arrays)["distance_end"]
    assert ends["w+"] < ends["w"]


def test_the_instance_is_searched_on_request(trained, made, tmp_path):
    network, target = trained["instance"], made["instance"][0]
    fixed = project(network, tmp_path / "fixed", "--target", target, "--steps=3")
    arrays = project(network, tmp_path / "free", "--target", target, "--steps=150", "--optimise-instance")
    (start,), (end,) = options_of(arrays)["distance_start"], options_of(arrays)["distance_end"]
    assert end < start / 3
    assert np.linalg.norm(arrays["h"][0]) == pytest.approx(1, abs=1e-5)
    assert float(fixed["h"][0] @ arrays["h"][0]) < 0.999  # it has moved from the feature of the target
    mapping = load_model(network, CPU).generator.mapping
    z, h = torch.from_numpy(arrays["z"]), torch.from_numpy(arrays["h"])
    np.testing.assert_allclose(mapping(z, torch.zeros(1, 0), h).numpy(), arrays["w"], atol=1e-5)
    assert rendered_again(network, tmp_path / "free") == [(tmp_path / "free" / "projection.png").read_bytes()]
    of_its_kind = ["--format=npz", "--seeds=0", f"--outdir={tmp_path / 'kind'}"]
    found = f"--instance-feats={tmp_path / 'free' / 'projected_w.npz'}"
    assert invoke(generate.main, f"--network={network}", found, *of_its_kind).exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "kind" / "images.npz")["h"], arrays["h"], atol=1e-6)


def test_h_is_the_row_given_or_the_feature_of_the_target(trained, tmp_path):
    images = pattern_images(40)[0]
    for i in (4, 7):
        PIL.Image.fromarray(images[i]).save(tmp_path / f"{i}.png")
    feats = trained["data"].with_name("patterns.instances") / "features.npy"
    rows = np.load(feats)
    run = [trained["instance"], tmp_path / "out", "--steps=1", "--target", tmp_path / "4.png", tmp_path / "7.png"]
    np.testing.assert_allclose(project(*run)["h"], rows[[4, 7]], atol=1e-4)  # images of the data set itself
    given = [*run, f"--instance-feats={feats}"]
    np.testing.assert_allclose(project(*given, "--row=9")["h"], rows[[9, 9]], atol=1e-6)
    np.testing.assert_allclose(project(*given, "--rows=9,2")["h"], rows[[9, 2]], atol=1e-6)


def test_classes_one_for_all_or_one_each(trained, made, tmp_path):
    run = [trained["class"], tmp_path, "--steps=1", "--target", *made["class"]]
    assert project(*run, "--class=2")["c"].argmax(axis=1).tolist() == [2, 2]
    assert project(*run, "--class=0,3")["c"].argmax(axis=1).tolist() == [0, 3]


def test_noise_maps_stay_noise_or_stay_the_networks(trained, made, tmp_path):
    run = [trained["none"], tmp_path, "--steps=40", "--target", made["none"][0]]
    assert not [name for name in project(*run) if name.startswith("noise/")]
    searched = project(*run, "--optimise-noise")
    names = own_maps(load_model(trained["none"], CPU).generator)
    assert {f"noise/{name}" for name in names} == {name for name in searched if name.startswith("noise/")}
    for name, own in names.items():
        found = searched[f"noise/{name}"][0]
        assert found.mean() == pytest.approx(0, abs=1e-5)
        assert found.std() == pytest.approx(1, abs=1e-4)
        assert abs(found - own.numpy()).max() > 0.1
        assert autocorrelation({"": torch.from_numpy(found[None])}) < autocorrelation({"": own[None]}) / 3
    assert rendered_again(trained["none"], tmp_path) == [(tmp_path / "projection.png").read_bytes()]


def test_progress_and_film(trained, made, tmp_path):
    run = [f"--network={trained['none']}", "--target", made["none"][0], "--steps=30", f"--outdir={tmp_path}"]
    result = invoke(projector.main, *run, "--video", "--device=cpu")
    lines = [line for line in result.stderr.splitlines() if "distance 0" in line]
    assert [int(line.split("/")[0]) for line in lines] == list(range(0, 31, 3))
    assert f"{made['none'][0]}: distance" in result.stdout
    (film,) = tmp_path.glob("search.*")
    if film.suffix == ".gif":
        with PIL.Image.open(film) as frames:
            assert frames.size == (64 + 32 + 64, 64)
            assert frames.n_frames > 15  # Pillow joins equal ones
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_wrong_input_is_refused(trained, made, tmp_path, refused: Refused, monkeypatch):
    monkeypatch.setattr("stylegan2_icgan.models.from_json", lambda *args: pytest.fail("a network was built"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing-cached"))
    feats = trained["data"].with_name("patterns.instances") / "features.npy"
    outdir, target = f"--outdir={tmp_path / 'out'}", ["--target", made["none"][0]]
    none, by_class, instance = ([f"--network={trained[cond]}", outdir] for cond in ("none", "class", "instance"))

    def message(*flags: str | Path) -> str:
        return refused(projector.main, *flags)

    (tmp_path / "text.png").write_text("text")
    np.save(tmp_path / "wide.npy", np.ones((3, 99), np.float32))
    assert "--target" in message(*none)
    assert "--network" in message(outdir, *target)
    assert "text.png" in message(*none, "--target", tmp_path / "text.png")
    assert "no such file" in message(*none, "--target", tmp_path / "gone.png")
    assert "--steps=0: expected at least 1" in message(*none, *target, "--steps=0")
    assert "--lr=0.0" in message(*none, *target, "--lr=0")
    assert "--lr=nan" in message(*none, *target, "--lr=nan")
    assert "--seed=-1" in message(*none, *target, "--seed=-1")
    assert "--space" in message(*none, *target, "--space=z")
    assert "system biggan, without w" in message(f"--network={trained['biggan']}", outdir, *target)
    assert "width 99" in message(*instance, *target, f"--instance-feats={tmp_path / 'wide.npy'}", "--row=0")
    assert "expected 0 to 39" in message(*instance, *target, f"--instance-feats={feats}", "--row=40")
    assert "--rows is missing" in message(*instance, *target, f"--instance-feats={feats}")
    assert "--rows names 2 rows" in message(*instance, *target, f"--instance-feats={feats}", "--rows=1,2")
    assert "--instance-feats" in message(*instance, *target, "--row=1")
    assert "not conditioned on instances" in message(*none, *target, f"--instance-feats={feats}", "--row=1")
    assert "not conditioned on instances" in message(*none, *target, "--optimise-instance")
    assert "not conditioned on instances" in message(*none, *target, "--extractor-weights=x.pth")
    assert "w+" in message(*instance, *target, "--optimise-instance", "--space=w+")
    assert "--class is missing" in message(*by_class, *target)
    assert "expected 0 to 3" in message(*by_class, *target, "--class=4")
    assert "--class names 2" in message(*by_class, *target, "--class=1,2")
    assert "no classes" in message(*none, *target, "--class=1")
    assert "16 pixels" in message(*none, *target, "--distance=lpips")
    assert "pyramid" in message(*none, *target, "--distance=pyramid", "--lpips-weights", "x.pth")
    assert not (tmp_path / "out").exists()


def test_a_search_without_numbers_ends(trained, made, tmp_path):
    content = torch.load(trained["none"], weights_only=True)
    content["networks"]["G_ema"]["synthesis.b8.torgb.bias"] += torch.nan
    torch.save(content, tmp_path / "nan.pt")
    flags = [f"--network={tmp_path / 'nan.pt'}", "--target", made["none"][0], f"--outdir={tmp_path}", "--device=cpu"]
    result = invoke(projector.main, *flags)
    assert result.exit_code == 2
    assert "after 0 steps the distance is not a number" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.npz"))


# Files.


def test_styles_of_others_are_read_and_rendered(trained, tmp_path):
    """A .npz with nothing but w, as the published projector writes it."""
    generator = load_model(trained["none"], CPU).generator
    w = torch.randn(2, generator.num_ws, generator.w_dim, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "w.npz", w=w.numpy())
    expected = generator.synthesis(w[:1], noise_mode="const")
    images = render(generator, read_projection(tmp_path / "w.npz"))
    np.savez(tmp_path / "w.npz", w=w.numpy(), options="of another program")
    assert torch.equal(render(generator, read_projection(tmp_path / "w.npz")), images)
    assert images.shape[0] == 2
    assert (from_uint8(images[:1]) - expected.clamp(-1, 1)).abs().max() <= 1 / 127


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"w": np.zeros(8, np.float32)}, "no floating-point w"),
        ({"v": np.zeros((1, 3, 8), np.float32)}, "no floating-point w"),
        ({"w": np.full((1, 4, 8), np.nan, np.float32)}, "NaN or infinite"),
        ({"w": np.zeros((1, 3, 9), np.float32)}, "holds styles [3, 9], this model takes [4, 8]"),
        ({"w": np.zeros((2, 4, 8), np.float32), "noise/x": np.zeros((1, 4, 4), np.float32)}, "noise/x"),
        ({"w": np.zeros((1, 4, 8), np.float32), "noise/x": np.zeros((1, 4, 4), np.float32)}, "noise map x [4, 4]"),
    ],
)
def test_projections_that_do_not_fit_are_refused(trained, tmp_path, refused: Refused, arrays, words):
    np.savez(tmp_path / "w.npz", **arrays)
    run = [f"--network={trained['none']}", f"--projected-w={tmp_path / 'w.npz'}", f"--outdir={tmp_path / 'out'}"]
    message = refused(generate.main, *run)
    assert "--projected-w" in message
    assert words in message
    assert not (tmp_path / "out").exists()


def test_damaged_projections_are_refused(tmp_path, trained, refused: Refused):
    whole = Projection(torch.zeros(1, 4, 8), Condition.empty(1))
    save_projection(tmp_path / "whole.npz", whole)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    np.savez_compressed(tmp_path / "deflated.npz", w=torch.randn(1, 4, 8).numpy())
    content = bytearray((tmp_path / "deflated.npz").read_bytes())
    content[60:120] = bytes(byte ^ 0x5A for byte in content[60:120])
    (tmp_path / "deflated.npz").write_bytes(content)
    for name in ("deflated.npz", "cut.npz", "array.npy", "text.npz", "gone.npz"):
        run = [f"--network={trained['none']}", f"--projected-w={tmp_path / name}", f"--outdir={tmp_path / 'out'}"]
        assert name in refused(generate.main, *run)


# Noise maps.


def test_noise_maps_are_the_networks_own_again(trained):
    generator = load_model(trained["none"], CPU).generator
    own = own_maps(generator)
    other = {name: torch.zeros_like(noise) for name, noise in own.items()}
    w = torch.ones(1, generator.num_ws, generator.w_dim)
    before = generator.synthesis(w, noise_mode="const")
    with pytest.raises(KeyError), maps_in_place(generator, other):
        assert torch.equal(generator.synthesis(w, noise_mode="const"), generator.synthesis(w, noise_mode="none"))
        raise KeyError
    assert torch.equal(generator.synthesis(w, noise_mode="const"), before)
    assert all(generator.get_buffer(name) is noise for name, noise in own.items())


def test_gradients_reach_every_noise_map_and_style(trained):
    generator = load_model(trained["none"], CPU).generator
    maps = {name: noise.repeat(2, 1, 1).requires_grad_() for name, noise in own_maps(generator).items()}
    w = torch.randn(2, generator.num_ws, generator.w_dim, requires_grad=True)
    images = synthesise(generator, w, maps)
    torch.testing.assert_close(images, synthesise(generator, w, {}))
    images[1].square().sum().backward()
    for leaf in (w, *maps.values()):
        assert leaf.grad[0].abs().max() == 0
        assert leaf.grad[1].abs().max() > 0


def test_autocorrelation_is_that_of_the_definition():
    noise = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2)
    for row in range(2):
        level = noise[row]
        for side in (16, 8):
            right = sum(level[y, x] * level[y, x - 1] for y in range(side) for x in range(side)) / side**2
            down = sum(level[y, x] * level[y - 1, x] for y in range(side) for x in range(side)) / side**2
            expected[row] += right**2 + down**2
            level = level.reshape(side // 2, 2, side // 2, 2).sum(dim=(1, 3)) / 2
    torch.testing.assert_close(autocorrelation({"a": noise}), expected)
    smooth = torch.sin(torch.arange(16) / 16 * 2 * torch.pi).expand(1, 16, 16) * 2**0.5
    assert autocorrelation({"a": smooth}) > 30 * expected.max()


def test_normalised_maps_have_mean_0_and_variance_1():
    maps = {"a": torch.randn(3, 8, 8) * 7 + 2, "b": torch.randn(3, 4, 4) - 9}
    normalise_(maps)
    for noise in maps.values():
        torch.testing.assert_close(noise.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(noise.square().mean(dim=(1, 2)), torch.ones(3))


# Distances, schedules, statistics.


def test_pyramid_sees_every_scale(tmp_path):
    a = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    distance = PyramidDistance(a)
    assert distance(a).tolist() == [0, 0]
    lighter = (a + 0.5) * torch.ones(2, 1, 1, 1)
    checks = 0.5 * (1 - 2 * (torch.arange(16)[:, None] + torch.arange(16)).remainder(2))
    fine, coarse = distance(a + checks), distance(lighter)
    assert (fine > 0.3).all()
    assert (coarse > 0.3).all()
    flat = a.clone().requires_grad_()
    distance(flat + 0.1).sum().backward()
    assert (flat.grad != 0).any(dim=1).all()
    torch.testing.assert_close(PyramidDistance(a[:1])(lighter[:1])[0], coarse[0])


def test_lpips_is_that_of_the_metrics_and_has_a_gradient(lpips_file):
    network = Lpips.load([lpips_file], CPU)
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 1, 32, 32, generator=draw) * 2 - 1 for _ in range(2))
    b.requires_grad_()
    found = LpipsDistance(network, a)(b)
    torch.testing.assert_close(found.detach(), network((a + 1) * 127.5, (b.detach() + 1) * 127.5))
    found.sum().backward()
    assert b.grad.abs().sum() > 0
    large = torch.rand(1, 3, 512, 512, generator=draw)
    small = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(LpipsDistance(network, large)(-large), LpipsDistance(network, small)(-small))


def test_auto_is_lpips_where_its_weights_are(lpips_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    targets = torch.zeros(1, 3, 16, 16)
    assert make_distance("auto", [], targets).name == "pyramid"
    assert make_distance("auto", [lpips_file], targets).name == "lpips-vgg16-v0.1"
    monkeypatch.setattr(Download, "cached", lambda self: lpips_file)
    monkeypatch.setattr(Lpips, "load", classmethod(lambda cls, given, device: given or "published"))
    monkeypatch.setattr(LpipsDistance, "__init__", lambda self, network, targets: setattr(self, "name", network))
    assert make_distance("auto", [], targets).name == "published"
    assert make_distance("pyramid", [], targets).name == "pyramid"
    assert make_distance("auto", [], targets[..., :8, :8]).name == "pyramid"  # too small for LPIPS


def test_schedules_are_those_of_the_paper():
    assert style_noise(0) == 0.05
    assert style_noise(0.375) == pytest.approx(0.05 / 4)
    assert style_noise(0.75) == style_noise(0.9) == 0
    assert learning_rate(0.025) == pytest.approx(0.5)
    assert learning_rate(0.05) == learning_rate(0.75) == pytest.approx(1)
    assert learning_rate(0.875) == pytest.approx(0.5)
    assert learning_rate(1) == pytest.approx(0)


def test_pixels_beyond_the_range_can_come_back():
    x = torch.tensor([-2.0, -2.0, 0.5, 2.0, 2.0], requires_grad=True)
    pull = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])  # a step goes the other way
    clipped = Clip.apply(x)
    assert clipped.tolist() == [-1, -1, 0.5, 1, 1]
    clipped.backward(pull)
    assert x.grad.tolist() == [0, -1, 1, 1, 0]


def test_statistics_are_of_the_condition(trained):
    generator = load_model(trained["instance+class"], CPU).generator
    exemplars = load_model(trained["instance+class"], CPU).exemplars.condition[:2]
    found = style_statistics(generator.mapping, exemplars, seed=0)
    z = torch.randn(4000, generator.z_dim, generator=torch.Generator().manual_seed(5))
    for row in range(2):
        same = exemplars[[row] * len(z)]
        w = generator.mapping(z, same.c, same.h)[:, 0]
        deviation = (w - w.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        assert (found.mean[row] - w.mean(dim=0)).norm() < 0.1 * deviation
        assert found.deviation[row] == pytest.approx(float(deviation), rel=0.05)
        central = generator.mapping(found.central_z[row : row + 1], same.c[:1], same.h[:1])[0, 0]
        assert (central - found.mean[row]).norm() < (w - found.mean[row]).norm(dim=1).quantile(0.01)
    assert (found.mean[0] - found.mean[1]).norm() > 0.1 * found.deviation[0]
