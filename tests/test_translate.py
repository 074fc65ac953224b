"""translate.py: what it writes, what it measures, what it refuses."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Refused, invoke, write_zip

import translate
from metrics import lpips
from metrics.paired import mse, psnr, ssim
from stylegan2_icgan.models import load_model, make_system
from training.checkpoint import Recipe, Snapshot, save_snapshot
from training.condition import Condition, Exemplars
from training.dataset import ImageFolderDataset
from training.sampling import from_uint8, to_uint8
from training.system import DataShape

DIGITS = Path(__file__).parents[1] / "datasets" / "digits.zip"
NOTHING = Exemplars(Condition.empty(0), torch.zeros(0, 1, 1, 1, dtype=torch.uint8), [])


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """An untrained translator of grey 16x16 images."""
    recipe = Recipe("csgan", {"ch": 4, "blocks": 1, "patch_layers": 1}, DataShape(16, 1, 0, 0), {})
    system = make_system(recipe, 0)
    networks = {name: network.state_dict() for name, network in system.networks.items()}
    save_snapshot(tmp_path / "translator.pt", Snapshot(recipe, networks | {"G_ema": networks["G"]}, NOTHING, 3000))
    return tmp_path / "translator.pt"


@pytest.fixture
def digits() -> np.ndarray:
    """uint8 [20, 16, 16]"""
    return ImageFolderDataset(DIGITS).images(range(20))[:, 0].numpy()


def test_a_png_for_each_image_and_a_sheet(network: Path, digits: np.ndarray, tmp_path: Path) -> None:
    names = [f"{'ab'[i % 2]}/{i:02d}.png" for i in range(20)]
    source, out = write_zip(tmp_path / "source.zip", list(digits), names=names), tmp_path / "out"
    result = invoke(translate.main, f"--network={network}", f"--source={source}", "--direction=BA", f"--outdir={out}")
    assert result.exit_code == 0, result.output
    assert f"20 images in {out}" in result.output
    assert {file.relative_to(out).as_posix() for file in out.rglob("*.*")} == {*names, "sheet.png"}
    G = load_model(network, torch.device("cpu"), translator=True).generator
    expected = to_uint8(G.BA(from_uint8(torch.from_numpy(digits[7])[None, None])))
    assert np.array_equal(np.asarray(PIL.Image.open(out / "b" / "07.png")), expected[0, 0])
    with PIL.Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (4 * 2 * 16 * 4, (5 * 17 - 1) * 4)  # 4 pairs a row, four times enlarged
        assert np.array_equal(np.asarray(sheet)[2:64:4, 2:64:4], digits[0])


def test_images_of_other_sizes_and_kinds_are_brought_to_those_of_the_model(
    network: Path, digits: np.ndarray, tmp_path: Path
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    PIL.Image.fromarray(np.kron(digits[0], np.ones((4, 4), np.uint8))).convert("RGB").save(folder / "large.jpg")
    PIL.Image.fromarray(np.pad(digits[1], ((0, 0), (8, 8)))).save(folder / "wide.bmp")
    flags = [f"--network={network}", f"--source={folder}", f"--outdir={out}"]
    assert invoke(translate.main, *flags, "--direction=ab").exit_code == 2  # the word is AB
    assert invoke(translate.main, *flags, "--direction=AB").exit_code == 0
    assert {file.name for file in out.iterdir()} == {"large.png", "wide.png", "sheet.png"}
    G = load_model(network, torch.device("cpu"), translator=True).generator
    expected = to_uint8(G.AB(from_uint8(torch.from_numpy(digits[1])[None, None])))  # its middle
    assert np.array_equal(np.asarray(PIL.Image.open(out / "wide.png")), expected[0, 0])


def test_translations_are_measured_against_their_targets(network: Path, digits: np.ndarray, tmp_path: Path) -> None:
    names = [f"{i:02d}.png" for i in range(20)]
    source = write_zip(tmp_path / "source.zip", list(digits), names=names)
    target = write_zip(tmp_path / "target.zip", list(255 - digits[::-1]), names=names[::-1])  # by name, not by place
    out = tmp_path / "out"
    flags = [f"--network={network}", f"--source={source}", f"--target={target}", "--direction=AB", f"--outdir={out}"]
    result = invoke(translate.main, *flags)
    assert result.exit_code == 0, result.output
    made = torch.from_numpy(np.stack([np.asarray(PIL.Image.open(out / name)) for name in names]))[:, None]
    wanted = torch.from_numpy(255 - digits)[:, None]
    record = json.loads((out / "metrics.json").read_text())
    for name, function in (("mse", mse), ("psnr", psnr), ("ssim", ssim)):
        values = function(made, wanted)
        assert record["results"][name] == pytest.approx(float(values.mean()))
        assert record["standard_error"][name] == pytest.approx(float(values.std() / 20**0.5))
        assert f"{float(values.mean()):.5g}" in result.output
    assert (record["num"], record["kimg"], record["direction"]) == (20, 3.0, "AB")

    same = write_zip(tmp_path / "same.zip", [image[0].numpy() for image in made], names=names)
    invoke(translate.main, *flags, f"--target={same}", "--metrics=psnr,mse")
    record = json.loads((out / "metrics.json").read_text())
    assert record["results"] == {"psnr": "inf", "mse": 0.0}


def test_lpips_is_taken_where_there_are_weights(
    network: Path, digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = ((2, 2), (2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    monkeypatch.setattr(lpips, "BLOCKS", narrow)
    tensors, width_in, number = {}, 3, 0
    for level, widths in enumerate(narrow):
        for width in widths:
            tensors[f"features.{number}.weight"] = torch.randn(width, width_in, 3, 3)
            tensors[f"features.{number}.bias"] = torch.zeros(width)
            width_in, number = width, number + 2
        tensors[f"lin{level}.model.1.weight"] = torch.rand(1, widths[-1], 1, 1)
        number += 1
    torch.save(tensors, tmp_path / "lpips.pth")
    source = write_zip(tmp_path / "source.zip", list(digits))
    flags = [f"--network={network}", f"--source={source}", f"--target={source}", "--direction=AB"]
    flags += ["--metrics=lpips", "--lpips-weights", str(tmp_path / "lpips.pth"), f"--outdir={tmp_path / 'out'}"]
    assert invoke(translate.main, *flags).exit_code == 0
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["results"]["lpips"] > 0
    assert record["lpips"]["published"] is False


def test_what_cannot_be_is_refused(refused: Refused, network: Path, digits: np.ndarray, tmp_path: Path) -> None:
    names = [f"{i:02d}.png" for i in range(20)]
    source, out = write_zip(tmp_path / "source.zip", list(digits), names=names), tmp_path / "out"
    way = [f"--source={source}", "--direction=AB", f"--outdir={out}"]
    flags = [f"--network={network}", *way]

    other = tmp_path / "other.pt"
    save_snapshot(other, Snapshot(Recipe("stylegan2", {}, DataShape(16, 1, 0, 0), {}), {}, NOTHING, 0))
    message = refused(translate.main, f"--network={other}", *way)
    assert "is of system 'stylegan2', which makes images of noise; expected one of csgan, or generate.py" in message
    assert "--metrics=ssim compares with targets" in refused(translate.main, *flags, "--metrics=ssim")
    targets = [*flags, f"--target={source}"]
    assert "'sim' is none of mse, psnr, ssim, lpips" in refused(translate.main, *targets, "--metrics=sim")
    assert "--lpips-weights are for --metrics=lpips" in refused(translate.main, *targets, "--lpips-weights", "x.pth")
    assert "--source=nowhere does not exist" in refused(translate.main, *flags, "--source=nowhere")
    assert "--target=nowhere does not exist" in refused(translate.main, *flags, "--target=nowhere")

    fewer = write_zip(tmp_path / "fewer.zip", list(digits[:18]), names=names[:18])
    message = refused(translate.main, *flags, f"--target={fewer}")
    assert "has no image of the name of 2 in" in message
    assert "18, 19; expected one for each" in message
    twice = write_zip(tmp_path / "twice.zip", list(digits[:2]), names=["a.png", "a.bmp"])
    assert "a.bmp and a.png differ in their endings only" in refused(translate.main, *flags, f"--source={twice}")
    for name in ("sheet.png", "/up.png"):
        zipped = write_zip(tmp_path / "odd.zip", list(digits[:1]), names=[name])
        assert f"an image can't be called {name} here" in refused(translate.main, *flags, f"--source={zipped}")
    assert not out.exists()

    folder = tmp_path / "folder"
    folder.mkdir()
    PIL.Image.fromarray(digits[0]).save(folder / "a.png")
    inside = [f"--source={folder}", f"--outdir={folder}"]
    assert "whose images would be overwritten" in refused(translate.main, *flags, *inside)
    (folder / "b.png").write_bytes(b"no image")
    assert "b.png: not an image" in refused(translate.main, *flags, f"--source={folder}")
    assert list(out.iterdir()) == []


def test_images_too_small_for_a_metric_are_refused(refused: Refused, tmp_path: Path) -> None:
    recipe = Recipe("csgan", {"ch": 4, "blocks": 1, "patch_layers": 1}, DataShape(8, 1, 0, 0), {})
    networks = {"G_ema": make_system(recipe, 0).networks["G"].state_dict()}
    save_snapshot(tmp_path / "small.pt", Snapshot(recipe, networks, NOTHING, 0))
    source = write_zip(tmp_path / "source.zip", [np.zeros((8, 8), np.uint8)])
    flags = [f"--network={tmp_path / 'small.pt'}", f"--source={source}", f"--target={source}", "--direction=AB"]
    message = refused(translate.main, *flags, f"--outdir={tmp_path / 'out'}")
    assert "--metrics=ssim takes images of 11 pixels or more; these have 8" in message
    assert not (tmp_path / "out").exists()
