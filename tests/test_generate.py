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
from stylegan2_icgan.conditioning import Choice, from_exemplars
from stylegan2_icgan.evaluation.conditions import Conditions
from stylegan2_icgan.models import load_model
from stylegan2_icgan.standing import normalised
from stylegan2_icgan.using.flags import Flags
from stylegan2_icgan.using.rendering import Point, Renderer, center_noise
from torch_utils import custom_ops
from training.dataset import ImageFolderDataset


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


def test_instances_of_the_snapshot_are_chosen_or_all_taken(trained: dict[str, Path], tmp_path: Path) -> None:
    common = [f"--network={trained['instance']}", "--seeds=1"]
    some = [*common, "--instances=exemplars:3,5-6", f"--outdir={tmp_path / 'some'}"]
    assert invoke(generate.main, *some).exit_code == 0
    assert set(written(tmp_path / "some")) == {f"exemplar0000{i}-seed0001.png" for i in (3, 5, 6)} | {"sheet.png"}
    assert invoke(generate.main, *common, "--instances=exemplars", f"--outdir={tmp_path / 'all'}").exit_code == 0
    assert len(written(tmp_path / "all")) == 40 + 1
    classes = [f"--network={trained['class']}", "--instances=exemplars:1,3", "--seeds=0", f"--outdir={tmp_path / 'c'}"]
    assert invoke(generate.main, *classes).exit_code == 0
    assert set(written(tmp_path / "c")) == {"class00001-seed0000.png", "class00003-seed0000.png", "sheet.png"}


def test_a_mix_is_the_weighted_sum_of_features_at_unit_length(trained: dict[str, Path], tmp_path: Path) -> None:
    store = trained["data"].with_name("patterns.instances")
    h = np.load(store / "features.npy").astype(np.float64)
    mixed = 0.3 * h[0] + 0.7 * h[5]
    np.save(tmp_path / "mixed.npy", np.stack([mixed / np.linalg.norm(mixed), h[5]]).astype(np.float32))
    common = [f"--network={trained['instance']}", "--seeds=2"]
    by_hand = [*common, f"--instance-feats={tmp_path / 'mixed.npy'}", f"--outdir={tmp_path / 'hand'}"]
    assert invoke(generate.main, *by_hand).exit_code == 0
    flags = ["--mix", "0:0.3,5:0.7", "5:2", f"--outdir={tmp_path / 'mix'}"]
    assert invoke(generate.main, *common, "--instances=exemplars:0-7", *flags).exit_code == 0
    for name, row in (("mix00-0-5", 0), ("mix01-5", 1)):
        one = pixels(tmp_path / "mix" / f"{name}-seed0002.png").astype(int)
        assert abs(one - pixels(tmp_path / "hand" / f"row{row:05d}-seed0002.png")).max() <= 1
    images, sheet = pattern_images(40)[0], pixels(tmp_path / "mix" / "sheet.png")
    assert np.array_equal(sheet[:64:8, :64:8], images[0])  # both parts of the mix are shown, and one of the other
    assert np.array_equal(sheet[:64:8, 64:128:8], images[5])
    assert np.array_equal(sheet[72::8, :64:8], images[5])
    assert (sheet[72:, 64:128] == 255).all()


def test_mixed_classes_must_agree_or_be_named(trained: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    """Patterns 0 and 4 are of class 0, pattern 1 of class 1."""
    common = [f"--network={trained['instance+class']}", "--seeds=0", f"--outdir={tmp_path}"]
    assert "rows 0, 1 are of different classes" in refused(generate.main, *common, "--mix=0:1,1:1")
    assert invoke(generate.main, *common, "--mix=0:1,4:1").exit_code == 0
    assert invoke(generate.main, *common, "--mix=0:1,1:1", "--class=1").exit_code == 0
    assert set(written(tmp_path)) == {"mix00-0-4-seed0000.png", "mix00-0-1-class1-seed0000.png", "sheet.png"}


@pytest.mark.parametrize("center", ["global", "instance"])
def test_full_truncation_leads_to_its_center(trained: dict[str, Path], tmp_path: Path, center: str) -> None:
    flags = [f"--network={trained['instance']}", "--rows=0-2", "--seeds=0-2", "--trunc=0", f"--trunc-center={center}"]
    assert invoke(generate.main, *flags, f"--outdir={tmp_path}").exit_code == 0
    images = [[pixels(tmp_path / f"exemplar0000{row}-seed000{seed}.png") for seed in range(3)] for row in range(3)]
    assert all(np.array_equal(image, row[0]) for row in images for image in row)
    assert len({row[0].tobytes() for row in images}) == {"global": 1, "instance": 3}[center]


def test_own_center_is_the_mean_of_w_over_the_noise(trained: dict[str, Path]) -> None:
    model = load_model(trained["instance"], torch.device("cpu"))
    rows, generator = from_exemplars(model, Choice([0, 7])), model.generator
    z = center_noise(generator.z_dim)
    renderer = Renderer(model, Flags(trunc=0.25, trunc_center="instance", trunc_cutoff=2))
    ws = renderer.styles(z[:2], rows.condition)
    for row in range(2):
        every = generator.mapping(z, None, rows.condition.h[[row]].expand(len(z), -1))[:, 0]
        own = every[row]
        assert torch.allclose(ws[row, 0], every.mean(dim=0) + 0.25 * (own - every.mean(dim=0)), atol=1e-5)
        assert torch.allclose(ws[row, 3], own, atol=1e-5)
        assert not torch.allclose(ws[row, 0], ws[row, 3], atol=1e-2)


def test_standing_statistics(trained, tmp_path, refused: Refused, monkeypatch):
    monkeypatch.setattr("stylegan2_icgan.standing.STANDING_PASSES", 3)
    flags = [f"--network={trained['biggan']}", "--rows=0", "--seeds=0"]
    images = {}
    for mode in ("running", "standing", "again"):
        folder = tmp_path / mode
        words = [f"--outdir={folder}", f"--bn-mode={mode.replace('again', 'standing')}"]
        assert invoke(generate.main, *flags, *words).exit_code == 0
        images[mode] = next(folder.glob("exemplar*.png")).read_bytes()
    assert images["standing"] == images["again"] != images["running"]
    plain = [f"--network={trained['instance']}", f"--outdir={tmp_path}", "--bn-mode=standing"]
    assert "no batch normalisation; leave it out" in refused(generate.main, *plain)


def test_standing_statistics_are_of_what_will_be_generated(trained, monkeypatch):
    monkeypatch.setattr("stylegan2_icgan.standing.STANDING_PASSES", 3)
    model = load_model(trained["biggan"], torch.device("cpu"))
    seen = []
    model.generator.register_forward_pre_hook(lambda _, given, how: seen.append((given, how)), with_kwargs=True)
    with normalised(model, "standing", Conditions(model.exemplars), 16, truncation_psi=0.5) as what:
        assert what == "standing, 3 batches of 16"
    assert [how["truncation_psi"] for _, how in seen] == [0.5] * 3
    z, h = (torch.cat([given[part] for given, _ in seen]) for part in (0, 2))
    assert len(z.unique(dim=0)) == 48
    stored = model.exemplars.condition.h
    assert 4 < len(h.unique(dim=0)) <= len(stored)
    assert {tuple(row) for row in h.tolist()} <= {tuple(row) for row in stored.tolist()}


@pytest.mark.parametrize("kind", ["instance", "biggan"])
def test_more_images_at_a_time_are_the_same_up_to_rounding(trained: dict[str, Path], tmp_path: Path, kind: str) -> None:
    common = [f"--network={trained[kind]}", "--rows=0-2", "--seeds=0-4", "--trunc=0.8"]
    for batch in (1, 4):
        result = invoke(generate.main, *common, f"--batch={batch}", f"--outdir={tmp_path / str(batch)}")
        assert result.exit_code == 0, result.output
    assert len(written(tmp_path / "4")) == 15 + 1
    for name in written(tmp_path / "1"):
        assert abs(pixels(tmp_path / "1" / name).astype(int) - pixels(tmp_path / "4" / name)).max() <= 1


def test_formats_and_layouts_hold_the_same_images(trained: dict[str, Path], tmp_path: Path) -> None:
    common = [f"--network={trained['instance']}", "--rows=0,4", "--seeds=0-2"]
    for name, flags in {"png": [], "jpg": ["--format=jpg", "--layout=folders"], "npz": ["--format=npz"]}.items():
        assert invoke(generate.main, *common, *flags, f"--outdir={tmp_path / name}").exit_code == 0
    with np.load(tmp_path / "npz" / "images.npz") as arrays:
        assert arrays["images"].shape == (2, 3, 8, 8, 1)
        assert arrays["names"].tolist() == ["exemplar00000", "exemplar00004"]
        assert arrays["h"].shape == (
            2,
            np.load(trained["data"].with_name("patterns.instances") / "features.npy").shape[1],
        )
        for row, name in enumerate(arrays["names"]):
            for seed in arrays["seeds"].tolist():
                image = arrays["images"][row, seed, :, :, 0]
                assert np.array_equal(image, pixels(tmp_path / "png" / f"{name}-seed{seed:04d}.png"))
                jpg = pixels(tmp_path / "jpg" / name / f"seed{seed:04d}.jpg").astype(int)
                assert abs(image - jpg).mean() < 4
    assert (tmp_path / "npz" / "sheet.png").read_bytes() == (tmp_path / "png" / "sheet.png").read_bytes()


def test_a_zip_of_many_is_a_data_set_with_labels(trained: dict[str, Path], tmp_path: Path) -> None:
    network = f"--network={trained['instance+class']}"
    result = invoke(generate.main, network, "--num=45", f"--outzip={tmp_path / 'many.zip'}", "--trunc=0.7")
    assert result.exit_code == 0, result.output
    assert "images/s" in result.stderr
    dataset = ImageFolderDataset(tmp_path / "many.zip", use_labels=True)
    assert (len(dataset), dataset.c_dim, dataset.image_shape) == (45, 4, (1, 8, 8))
    assert dataset.class_ids.tolist() == [n % 40 % 4 for n in range(45)]  # 40 exemplars in turn, of 4 classes in turn
    assert (
        invoke(generate.main, network, "--rows=1", "--seeds=41", "--trunc=0.7", f"--outdir={tmp_path}").exit_code == 0
    )
    assert np.array_equal(dataset.image(41)[0], pixels(tmp_path / "exemplar00001-seed0041.png"))

    drawn = [network, "--num=45", "--draw=random", "--instances=exemplars:0-3"]
    for name in ("one", "two"):
        assert invoke(generate.main, *drawn, f"--outzip={tmp_path / name}.zip").exit_code == 0
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    classes = ImageFolderDataset(tmp_path / "one.zip", use_labels=True).class_ids
    assert set(classes) == {0, 1, 2, 3}
    assert classes.tolist() != [n % 4 for n in range(45)]


def test_a_zip_that_is_not_finished_has_no_name(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def full(image: torch.Tensor, kind: str) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stylegan2_icgan.using.dataset_zip.encode", full)
    flags = [f"--network={trained['none']}", "--num=3", f"--outzip={tmp_path / 'folder' / 'x.zip'}"]
    assert "No space left" in refused(generate.main, *flags)
    assert list((tmp_path / "folder").iterdir()) == []
    (tmp_path / "folder" / "x.zip").write_bytes(b"mine")
    assert "x.zip exists" in refused(generate.main, *flags)
    assert (tmp_path / "folder" / "x.zip").read_bytes() == b"mine"


def test_saved_styles_give_the_bytes_they_were_saved_of(
    trained: dict[str, Path], tmp_path: Path, refused: Refused
) -> None:
    model = load_model(trained["instance"], torch.device("cpu"))
    ws = Renderer(model, Flags()).styles_of(from_exemplars(model, Choice([3])), Point(5, 0))
    np.savez(tmp_path / "w.npz", w=torch.cat([ws.flip(1), ws]).numpy())
    network = f"--network={trained['instance']}"
    flags = [network, f"--projected-w={tmp_path / 'w.npz'}", f"--outdir={tmp_path / 'w'}"]
    assert invoke(generate.main, *flags).exit_code == 0
    assert invoke(generate.main, network, "--rows=3", "--seeds=5", f"--outdir={tmp_path / 'z'}").exit_code == 0
    expected = (tmp_path / "z" / "exemplar00003-seed0005.png").read_bytes()
    assert (tmp_path / "w" / "projected0001.png").read_bytes() == expected
    np.savez(tmp_path / "wide.npz", w=np.zeros((1, 14, 512), np.float32))
    message = refused(generate.main, network, f"--projected-w={tmp_path / 'wide.npz'}")
    assert "[14, 512]" in message
    assert "[4, 8]" in message
    assert "--seeds" in refused(generate.main, *flags, "--seeds=1")


def test_nearest_training_images_stand_beside_the_instance(trained: dict[str, Path], tmp_path: Path) -> None:
    near = np.load(trained["data"].with_name("patterns.instances") / "neighbours.npy")
    common = [f"--network={trained['instance']}", f"--data={trained['data']}", "--nearest=3", "--seeds=0"]
    assert invoke(generate.main, *common, "--rows=2,9", f"--outdir={tmp_path}").exit_code == 0
    images, sheet = pattern_images(40)[0], pixels(tmp_path / "sheet.png")
    for row, i in enumerate((2, 9)):
        for column, j in enumerate([i, *near[i, :3]]):
            shown = sheet[72 * row : 72 * row + 64 : 8, 64 * column : 64 * column + 64 : 8]
            assert np.array_equal(shown, images[j]), (row, column)


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

    for mix, reason in {
        "0:0.3,5": "'5' is not ROW:WEIGHT",
        "0:0,5:1": "weight '0' of row 0",
        "0:-1": "weight '-1'",
        "0:inf": "weight 'inf'",
        "0:1,0:2": "row 0 stands there twice",
        "0:1,99:1": "99 is beyond the 40 exemplars",
    }.items():
        assert reason in refused(generate.main, *net, f"--mix={mix}")
    assert "row 8 is not among those of --rows" in refused(generate.main, *net, "--rows=0-3", "--mix=8:1")
    np.save(tmp_path / "opposite.npy", np.stack([np.ones(h_dim), -np.ones(h_dim)]))
    opposite = [*net, f"--instance-feats={tmp_path / 'opposite.npy'}", "--mix=0:1,1:1"]
    assert "cancel out" in refused(generate.main, *opposite)
    assert "has none" in refused(generate.main, f"--network={trained['class']}", outdir, "--mix=0:1,1:1")

    assert "expected exemplars" in refused(generate.main, *net, "--instances=exemplar")
    assert "expected 0 to 39" in refused(generate.main, *net, "--instances=exemplars:40")
    assert "'x' is not a number" in refused(generate.main, *net, "--instances=exemplars:x")
    nothing = [f"--network={trained['none']}", outdir, "--instances=exemplars"]
    assert "not conditioned on anything" in refused(generate.main, *nothing)
    for one, other in [
        ("--instances=exemplars", "--rows=0"),
        ("--instances=exemplars", feats),
        ("--num=3", "--seeds=1"),
        ("--outzip=x.zip", "--nearest=2"),
        ("--projected-w=w.npz", "--trunc=0.5"),
        ("--format=npz", "--layout=folders"),
    ]:
        message = refused(generate.main, net[0], one, other)
        assert one.partition("=")[0] in message
        assert other.partition("=")[0] in message
        assert "both given" in message
    for alone, missing in {
        "--num=3": "--outzip",
        "--outzip=x.zip": "--num",
        "--draw=random": "--outzip",
        "--nearest=2": "--data",
        "--trunc-center=instance": "--trunc",
    }.items():
        assert f"is for {missing}" in refused(generate.main, net[0], alone)
    assert "--batch=0" in refused(generate.main, *net, "--batch=0")
    assert "--seeds: 3 stands there twice" in refused(generate.main, *net, "--seeds=3,1-3")
    assert "--rows: 1 stands there twice" in refused(generate.main, *net, "--rows=1,1")
    assert "exemplars:0,0: 0 stands there twice" in refused(generate.main, *net, "--instances=exemplars:0,0")
    near = [f"--data={trained['data']}", "--nearest=2"]
    assert "--nearest=2: this model" in refused(generate.main, f"--network={trained['class']}", outdir, *near)
    assert "expected 1 to 40" in refused(generate.main, *net, near[0], "--nearest=41")
    biggan = [f"--network={trained['biggan']}", outdir]
    for flag in (["--trunc=0.5", "--trunc-center=instance"], ["--projected-w=w.npz"]):
        assert "of system biggan, without w" in refused(generate.main, *biggan, *flag)
    assert "nothing.pt does not exist" in refused(generate.main, "--network=nothing.pt", outdir)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(trained: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    network = f"--network={trained['none']}"
    assert "can't be written" in refused(generate.main, network, f"--outdir={tmp_path / 'file'}")
    assert "can't be written" in refused(generate.main, network, "--num=1", f"--outzip={tmp_path / 'file' / 'x.zip'}")


def test_a_decompression_bomb_is_refused(
    trained: dict[str, Path], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    PIL.Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    flags = [f"--network={trained['instance']}", "--instance-images", tmp_path / "bomb.png"]
    message = refused(generate.main, *flags, f"--outdir={tmp_path / 'out'}")
    assert "bomb.png" in message
    assert "decompression bomb" in message


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


def test_a_pickle_is_told_how_to_become_a_snapshot(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "ffhq.pkl").write_bytes(b"")
    message = refused(generate.main, f"--network={tmp_path / 'ffhq.pkl'}")
    assert f"stylegan2_icgan.convert {tmp_path / 'ffhq.pkl'} {tmp_path / 'ffhq.pt'}" in message


def test_ops_are_chosen_and_native_ones_are_not_replaced_in_silence(
    trained: dict[str, Path], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(kind: str) -> Path:
        raise custom_ops.BuildError("there is no compiler")

    monkeypatch.setattr(custom_ops, "_found", {})
    monkeypatch.setattr(custom_ops, "build", build)
    run = [f"--network={trained['instance']}", "--rows=0", "--seeds=0", "--device=cpu"]
    for ops, said in (("auto", ["native ops are not used on the CPU: there is no compiler"]), ("ref", [])):
        result = invoke(generate.main, *run, f"--ops={ops}", f"--outdir={tmp_path / ops}")
        assert result.exit_code == 0
        assert result.stderr.splitlines() == said
    assert written(tmp_path / "auto") == written(tmp_path / "ref")
    assert "no compiler" in refused(generate.main, *run, "--ops=native", f"--outdir={tmp_path / 'native'}")
    assert not (tmp_path / "native").exists()


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
