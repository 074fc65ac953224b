import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from conftest import TINY_RUN, Refused, invoke, pattern_images, write_zip

import generate
import train

CONDS = ["none", "class", "instance", "instance+class"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A snapshot of each kind, after one step; and the data beside them."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_zip(folder / "patterns.zip", *pattern_images(40))
    snapshots = {"data": data}
    for cond in CONDS:
        flags = [*TINY_RUN, f"--data={data}", f"--cond={cond}", "--k=4", f"--outdir={folder / cond}"]
        assert invoke(train.main, *flags, "--minutes=0.0001").exit_code == 0
        (snapshots[cond],) = folder.glob(f"{cond}/*/network-snapshot-000000.pt")
    return snapshots


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def written(outdir: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in outdir.iterdir()}


@pytest.mark.parametrize(("cond", "rows"), [("none", 1), ("class", 4), ("instance", 8), ("instance+class", 8)])
def test_seeds_alone_are_enough_for_every_model(trained: dict[str, Path], tmp_path: Path, cond: str, rows: int) -> None:
    result = invoke(generate.main, f"--network={trained[cond]}", "--seeds=0-2", f"--outdir={tmp_path}")
    assert result.exit_code == 0, result.output
    assert len(written(tmp_path)) == rows * 3 + 1
    explained = 0 if cond == "none" else 64 + 32
    assert pixels(tmp_path / "sheet.png").shape == ((rows * 9 - 1) * 8, 3 * 64 + explained)
    assert f"{rows * 3} images" in result.output


def test_features_choose_rows_and_agree_with_the_stored_exemplar(trained: dict[str, Path], tmp_path: Path) -> None:
    """Every image is an exemplar here, in the order of the data: row i and exemplar i are one condition."""
    feats = trained["data"].with_name("patterns.instances") / "features.npy"
    common = [f"--network={trained['instance']}", "--seeds=1,3", "--trunc=0.7"]
    by_rows = [*common, f"--instance-feats={feats}", "--rows=0,5-6"]
    assert invoke(generate.main, *by_rows, f"--outdir={tmp_path / 'rows'}").exit_code == 0
    assert invoke(generate.main, *common, "--rows=0,5-6", f"--outdir={tmp_path / 'exemplars'}").exit_code == 0
    rows, exemplars = written(tmp_path / "rows"), written(tmp_path / "exemplars")
    assert set(rows) == {f"row{r:05d}-seed{s:04d}.png" for r in (0, 5, 6) for s in (1, 3)} | {"sheet.png"}
    for r in (0, 5, 6):
        assert rows[f"row{r:05d}-seed0001.png"] == exemplars[f"exemplar{r:05d}-seed0001.png"]
    assert len({rows[f"row{r:05d}-seed0001.png"] for r in (0, 5, 6)}) == 3
    assert rows["row00005-seed0001.png"] != rows["row00005-seed0003.png"]


@pytest.mark.parametrize("noise_mode", ["const", "random", "none"])
def test_same_row_and_seed_give_the_same_bytes(trained: dict[str, Path], tmp_path: Path, noise_mode: str) -> None:
    feats = trained["data"].with_name("patterns.instances") / "features.npy"
    common = [f"--network={trained['instance']}", f"--instance-feats={feats}", f"--noise-mode={noise_mode}"]
    assert invoke(generate.main, *common, "--rows=2-9", "--seeds=0-5", f"--outdir={tmp_path / 'many'}").exit_code == 0
    assert invoke(generate.main, *common, "--rows=7", "--seeds=4", f"--outdir={tmp_path / 'one'}").exit_code == 0
    name = "row00007-seed0004.png"
    assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_images_condition_like_their_own_features(trained: dict[str, Path], tmp_path: Path) -> None:
    """The snapshot carries the extractor: an image of the data set gives what its row gives, and is shown beside it."""
    images = pattern_images(40)[0]
    for i in (3, 8):
        PIL.Image.fromarray(images[i]).save(tmp_path / f"{i}.png")
    common = [f"--network={trained['instance']}", "--seeds=2"]
    flags = ["--instance-images", tmp_path / "3.png", tmp_path / "8.png", f"--outdir={tmp_path / 'images'}"]
    assert invoke(generate.main, *common, *flags).exit_code == 0
    assert invoke(generate.main, *common, "--rows=3,8", f"--outdir={tmp_path / 'rows'}").exit_code == 0
    for position, i in enumerate((3, 8)):
        one = pixels(tmp_path / "images" / f"{position:02d}-{i}-seed0002.png").astype(int)
        other = pixels(tmp_path / "rows" / f"exemplar{i:05d}-seed0002.png")
        assert abs(one - other).max() <= 1  # the feature is computed again: a last bit may differ
    sheet = pixels(tmp_path / "images" / "sheet.png")
    assert np.array_equal(sheet[:64:8, :64:8], images[3])
    assert np.array_equal(sheet[72::8, :64:8], images[8])


def test_data_shows_the_images_of_feature_rows(trained: dict[str, Path], tmp_path: Path) -> None:
    feats = trained["data"].with_name("patterns.instances") / "features.npy"
    common = [f"--network={trained['instance']}", f"--instance-feats={feats}", "--rows=6", "--seeds=0"]
    assert invoke(generate.main, *common, f"--data={trained['data']}", f"--outdir={tmp_path}").exit_code == 0
    assert np.array_equal(pixels(tmp_path / "sheet.png")[:, :64][::8, ::8], pattern_images(40)[0][6])


def test_class_and_truncation_and_cutoff_matter(trained: dict[str, Path], tmp_path: Path) -> None:
    """After one step all images are nearly alike: compare the generator's floats, not bytes."""
    from stylegan2_icgan.models import load_model

    model = load_model(trained["instance+class"], torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    z, cond = torch.randn(2, 8), model.exemplars.condition[:2]
    base = model.generator(z, cond.c, cond.h, noise_mode="const")
    assert not torch.allclose(base, model.generator(z, cond.c.roll(1, 1), cond.h, noise_mode="const"))
    assert not torch.allclose(base, model.generator(z, cond.c, cond.h.flip(0), noise_mode="const"))
    half = model.generator(z, cond.c, cond.h, noise_mode="const", truncation_psi=0.5)
    cut = model.generator(z, cond.c, cond.h, noise_mode="const", truncation_psi=0.5, truncation_cutoff=1)
    assert not torch.allclose(base, half)
    assert not torch.allclose(half, cut)
    flags = [f"--network={trained['instance+class']}", "--class=2", "--rows=0", "--seeds=0", f"--outdir={tmp_path}"]
    assert invoke(generate.main, *flags).exit_code == 0


def test_class_of_a_class_model_is_one_row(trained: dict[str, Path], tmp_path: Path) -> None:
    flags = [f"--network={trained['class']}", "--class=2", "--seeds=0", f"--outdir={tmp_path}"]
    assert invoke(generate.main, *flags).exit_code == 0
    assert set(written(tmp_path)) == {"class00002-seed0000.png", "sheet.png"}


def test_any_class_can_be_asked_for_though_few_are_stored(tmp_path: Path) -> None:
    """20 classes, one exemplar kept: --class makes its row of the class, not of what happens to be stored."""
    images, _ = pattern_images(40)
    data = write_zip(tmp_path / "many.zip", images, [i % 20 for i in range(40)])
    flags = [*TINY_RUN, f"--data={data}", "--cond=class", "--exemplars=1", "--minutes=0.0001"]
    assert invoke(train.main, *flags, f"--outdir={tmp_path / 'runs'}").exit_code == 0
    (snapshot,) = tmp_path.glob("runs/*/network-snapshot-000000.pt")
    for label in (0, 7, 19):
        flags = [f"--network={snapshot}", f"--class={label}", "--seeds=0-1", f"--outdir={tmp_path / str(label)}"]
        assert invoke(generate.main, *flags).exit_code == 0
        assert f"class{label:05d}-seed0001.png" in written(tmp_path / str(label))


def test_wrong_input_is_refused(
    trained: dict[str, Path], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylegan2_icgan.models.from_json", lambda *args: pytest.fail("a network was built"))
    store = trained["data"].with_name("patterns.instances")
    outdir = f"--outdir={tmp_path / 'out'}"
    net = [f"--network={trained['instance']}", outdir]

    np.save(tmp_path / "wide.npy", np.ones((3, 99), np.float32))
    message = refused(generate.main, *net, f"--instance-feats={tmp_path / 'wide.npy'}")
    h_dim = np.load(store / "features.npy").shape[1]
    assert "width 99" in message
    assert f"conditioned on {h_dim}" in message
    assert "pca" in message

    bad = np.ones((3, h_dim), np.float32)
    bad[1] = 0
    bad[2, 0] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    assert "row 1 has length 0" in refused(
        generate.main, *net, f"--instance-feats={tmp_path / 'bad.npy'}", "--rows=0,1"
    )
    assert "row 2 has length nan" in refused(
        generate.main, *net, f"--instance-feats={tmp_path / 'bad.npy'}", "--rows=2"
    )
    assert "expected 0 to 2" in refused(generate.main, *net, f"--instance-feats={tmp_path / 'bad.npy'}", "--rows=0,7")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    assert "floating-point" in refused(generate.main, *net, f"--instance-feats={tmp_path / 'words.npy'}")
    (tmp_path / "text.npy").write_text("text")
    assert "can't be read" in refused(generate.main, *net, f"--instance-feats={tmp_path / 'text.npy'}")

    foreign = tmp_path / "foreign.instances"
    foreign.mkdir()
    (foreign / "features.npy").write_bytes((store / "features.npy").read_bytes())
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["extractor"] |= {"name": "resnet50"}
    (foreign / "manifest.json").write_text(json.dumps(manifest))
    assert "was made by extractor" in refused(generate.main, *net, f"--instance-feats={foreign / 'features.npy'}")

    assert "'a' is not a number" in refused(generate.main, *net, "--seeds=a")
    assert "--class=2: this model has no classes" in refused(generate.main, *net, "--class=2")
    assert "expected 0 to 3" in refused(generate.main, f"--network={trained['class']}", outdir, "--class=4")
    feats = f"--instance-feats={store / 'features.npy'}"
    assert "--class is missing" in refused(generate.main, f"--network={trained['instance+class']}", outdir, feats)
    assert "not conditioned on instances" in refused(generate.main, f"--network={trained['none']}", outdir, feats)
    images = ["--instance-images", tmp_path / "text.npy"]
    assert "text.npy" in refused(generate.main, *net, *images)
    assert "both given" in refused(generate.main, *net, *images, feats)
    assert "--rows picks" in refused(generate.main, *net, *images, "--rows=0")
    assert "--data" in refused(generate.main, *net, f"--data={trained['data']}")
    assert "--network" in refused(generate.main, outdir)
    assert "nothing.pt does not exist" in refused(generate.main, "--network=nothing.pt", outdir)
    assert not (tmp_path / "out").exists()


def test_damaged_snapshots_are_refused(trained: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(trained["instance"].read_bytes()[:5000])
    assert "cut.pt can't be read" in refused(generate.main, f"--network={cut}")
    content = torch.load(trained["instance"], weights_only=True)
    config = json.loads(content["config"])
    config["options"]["channel_max"] = 4
    torch.save(content | {"config": json.dumps(config)}, tmp_path / "misfit.pt")
    assert "do not fit" in refused(generate.main, f"--network={tmp_path / 'misfit.pt'}")
    config["system"] = "biggan9"
    torch.save(content | {"config": json.dumps(config)}, tmp_path / "unknown.pt")
    assert "system 'biggan9'" in refused(generate.main, f"--network={tmp_path / 'unknown.pt'}")


@pytest.mark.slow
def test_a_pretrained_extractor_from_training_to_an_image(tmp_path: Path, refused: Refused) -> None:
    """resnet50 with a local file: the snapshot remembers which file, and asks for it when an image needs it."""
    weights = tmp_path / "resnet.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), weights)
    images, _ = pattern_images(6)
    data = write_zip(tmp_path / "six.zip", images)
    flags = [*TINY_RUN, f"--data={data}", "--cond=instance", "--k=2", "--minutes=0.0001", "--extractor=resnet50"]
    assert invoke(train.main, *flags, f"--extractor-weights={weights}", f"--outdir={tmp_path / 'runs'}").exit_code == 0
    (snapshot,) = tmp_path.glob("runs/*/network-snapshot-000000.pt")
    PIL.Image.fromarray(images[4]).save(tmp_path / "4.png")
    common = [f"--network={snapshot}", "--seeds=0", "--instance-images", tmp_path / "4.png"]
    message = refused(generate.main, *common)
    assert "resnet.pth" in message
    assert "--extractor-weights=FILE" in message
    chosen = [*common, f"--extractor-weights={weights}", f"--outdir={tmp_path / 'image'}"]
    assert invoke(generate.main, *chosen).exit_code == 0
    assert invoke(generate.main, *common[:2], "--rows=4", f"--outdir={tmp_path / 'row'}").exit_code == 0
    one, other = (pixels(next((tmp_path / kind).glob("*seed0000.png"))).astype(int) for kind in ("image", "row"))
    assert abs(one - other).max() <= 1
