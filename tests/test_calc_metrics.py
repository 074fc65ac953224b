"""calc_metrics.py as a user runs it: snapshots, folders, zips and features; what it refuses; what it records."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY_RUN, Refused, invoke, pattern_images, write_zip

import calc_metrics
import train
from metrics.detectors import RandomProjection
from metrics.image_sets import extract
from metrics.plot import read_curves
from stylegan2_icgan.evaluation.conditions import instance_features, make_conditions
from stylegan2_icgan.evaluation.generated import Generated
from stylegan2_icgan.evaluation.images import FileImages
from stylegan2_icgan.evaluation.options import Flags
from stylegan2_icgan.evaluation.snapshots import SnapshotMetrics
from stylegan2_icgan.models import load_model
from torch_utils import custom_ops
from torch_utils.command_line import UserError
from torch_utils.curves import HEIGHT, WIDTH
from torch_utils.files import sha256
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).parents[1]
RANDOM = "--detector=random"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A snapshot of each kind, after one step; and the data beside them."""
    folder = tmp_path_factory.mktemp("trained")
    paths = {"data": write_zip(folder / "patterns.zip", *pattern_images(60, side=16))}
    for cond in ("none", "class", "instance", "instance+class"):
        flags = [*TINY_RUN, f"--data={paths['data']}", f"--cond={cond}", f"--outdir={folder / cond}"]
        flags += ["--k=4"] if "instance" in cond else []
        assert invoke(train.main, *flags, "--minutes=0.0001").exit_code == 0
        (paths[cond],) = folder.glob(f"{cond}/*/network-snapshot-000000.pt")
    return paths


@pytest.fixture(scope="module")
def biggan(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator with batch norm, after one step."""
    folder = tmp_path_factory.mktemp("biggan")
    size = ["--cfg=biggan", "--ch=2", "--z-dim=12", "--shared-dim=4", "--attention=0", "--batch=8", "--aug=noaug"]
    flags = [*size, f"--data={trained['data']}", "--cond=class", f"--outdir={folder}", "--device=cpu", "--ops=ref"]
    assert invoke(train.main, *flags, "--minutes=0.0001").exit_code == 0
    (path,) = folder.glob("*/network-snapshot-000000.pt")
    return path


def records(*flags: str | Path) -> list[dict]:
    result = invoke(calc_metrics.main, "--workers=0", "--device=cpu", "--json", *flags)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def values_of(*flags: str | Path) -> dict[str, float]:
    return {name: value for line in records(*flags) for name, value in line["results"].items()}


# Snapshots.


@pytest.mark.parametrize("cond", ["none", "class", "instance", "instance+class"])
def test_snapshot_of_every_kind_is_measured(trained, tmp_path, cond):
    (line,) = records(f"--network={trained[cond]}", RANDOM, "--metrics=fid48_full", f"--out={tmp_path}")
    assert line == json.loads((tmp_path / "metric-fid48_full.jsonl").read_text())
    assert line["results"]["fid48_full"] > 1  # one step of training
    assert (line["num_real"], line["num_fake"]) == (60, 48)
    assert line["snapshot_sha256"] == sha256(trained[cond])
    assert line["reference"]["content"] == ImageFolderDataset(trained["data"]).fingerprint()
    assert line["reference"]["split"] == "train"  # known by its content
    assert line["reference"]["resolution"] == [16, 16]
    assert line["detector"]["filter"] == "clean"
    assert line["truncation"] == {"psi": 1.0, "cutoff": None}
    expected = "nothing" if cond == "none" else "60 images of patterns.zip"
    assert line["sampling"]["from"] == expected
    assert line["seeds"] == [0]
    assert {"torch", "python"} <= set(line["versions"])
    assert line["seconds"] >= 0


def test_results_repeat_and_follow_seed_truncation_and_policy(trained):
    flags = [f"--network={trained['instance']}", RANDOM, "--metrics=fid48_full"]
    first = values_of(*flags)
    assert values_of(*flags) == first
    assert values_of(*flags, "--no-cache") == first
    assert values_of(*flags, "--seeds=1") != first
    assert values_of(*flags, "--trunc=0.5") != first
    (line,) = records(*flags, "--instances=exemplars")
    assert line["sampling"]["from"] == "60 exemplars"
    assert line["results"] == first  # all images are exemplars here, in the order of the data
    assert values_of(*flags, "--filter=tf") == first  # images have the detector's size already


def test_several_seeds_give_an_interval(trained):
    flags = [f"--network={trained['class']}", RANDOM, "--metrics=fid48_full"]
    (line,) = records(*flags, "--seeds=0-2")
    each = [values_of(*flags, f"--seeds={seed}")["fid48_full"] for seed in range(3)]
    assert line["results"]["fid48_full"] == pytest.approx(np.mean(each))
    assert line["standard_error"]["fid48_full"] == pytest.approx(np.std(each, ddof=1) / 3**0.5)
    low, high = line["interval95"]["fid48_full"]
    assert low < min(each) < max(each) < high


def test_a_snapshot_of_a_subset_is_compared_with_that_subset(trained, tmp_path):
    flags = [*TINY_RUN, f"--data={trained['data']}", "--subset=40", "--seed=3", "--cond=instance", "--k=4"]
    assert invoke(train.main, *flags, f"--outdir={tmp_path}", "--minutes=0.0001").exit_code == 0
    (path,) = tmp_path.glob("*/network-snapshot-000000.pt")
    subset = ImageFolderDataset(trained["data"], max_images=40, subset_seed=3)
    (line,) = records(f"--network={path}", RANDOM, "--metrics=fid48_full")
    assert line["reference"]["content"] == subset.fingerprint()
    assert (line["num_real"], line["reference"]["split"], line["reference"]["subset_seed"]) == (40, "train", 3)
    assert line["sampling"]["from"] == "40 images of patterns.zip"
    assert line["notes"] == [
        "only 40 images for 64 features: the covariance is singular and the distance biased upwards"
    ]
    (line,) = records(f"--network={path}", RANDOM, "--metrics=fid48_full", f"--data={trained['data']}")
    assert (line["num_real"], line["reference"]["split"]) == (60, None)
    assert "trained on 40 of these images; without --data these are the reference" in line["notes"]


def test_data_that_has_changed_since_the_training_is_noted(tmp_path):
    images, labels = pattern_images(70, side=16)
    data = write_zip(tmp_path / "a.zip", images, labels)
    assert invoke(train.main, *TINY_RUN, f"--data={data}", f"--outdir={tmp_path}", "--minutes=0.0001").exit_code == 0
    (path,) = tmp_path.glob("*/network-snapshot-000000.pt")
    flags = [f"--network={path}", RANDOM, "--metrics=fid48_full"]
    assert not any("changed" in note for note in records(*flags)[0]["notes"])
    write_zip(data, images[::-1], labels)
    (line,) = records(*flags)
    assert line["reference"]["split"] is None
    assert "the data has changed since the snapshot was trained on it" in line["notes"]


def test_all_snapshots_of_a_run_make_a_curve(trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for kimg in (1, 2):
        content = torch.load(trained["none"], weights_only=True)
        content["config"] = json.dumps(json.loads(content["config"]) | {"cur_nimg": kimg * 1000})
        torch.save(content, run / f"network-snapshot-00000{kimg}.pt")
    records(f"--network={run}", RANDOM, "--metrics=is20,fid48_full")
    result = invoke(calc_metrics.main, f"--plot={run}")
    assert result.exit_code == 0
    assert list(read_curves(run)) == ["fid48_full", "is20_mean", "is20_std"]
    assert all(sorted(curve) == [1.0, 2.0] for curve in read_curves(run).values())
    with PIL.Image.open(run / "metrics.png") as picture:
        assert picture.size == (2 * WIDTH, 2 * HEIGHT)  # three panels


@pytest.mark.parametrize("other", [False, True])
def test_instances_and_classes_are_those_the_images_are_made_of(trained, tmp_path, other):
    """With the instance store of the training data, and with features of other data made by the model's extractor."""
    data = write_zip(tmp_path / "other.zip", *pattern_images(30, side=16, seed=5)) if other else trained["data"]
    flags = Flags(network=trained["instance+class"], data=data, workers=0)
    model, real = load_model(flags.network, torch.device("cpu")), FileImages(data, None, 0, "--data")
    conditions = make_conditions(model, flags, real, print)
    images, ids = Generated(model, conditions, 7, flags), np.arange(100)
    instances = images.instances(ids)
    assert len(set(instances)) > 20
    drawn = conditions(images._draws(ids))
    expected = instance_features(model, ImageFolderDataset(data), None, print)
    torch.testing.assert_close(drawn.h, expected[instances])
    assert images.classes(ids).tolist() == drawn.c.argmax(dim=1).tolist()
    if other:
        assert images.classes(ids).tolist() == real.classes(instances).tolist()  # of the instance itself
    assert images.copies(3).instances(ids).tolist() == instances.repeat(3)[:100].tolist()
    (alone,) = images.batches([ids[40:41]])
    (among,) = images.batches([ids])
    torch.testing.assert_close(alone[0].int(), among[40].int(), atol=1, rtol=0)
    pair = next(iter(images.copies(2).batches([np.array([0, 1, 2])])))
    assert not torch.equal(pair[0], pair[1])  # the same condition, other noise


def test_batch_norm_is_a_property_of_the_generator(trained, biggan, refused: Refused, monkeypatch):
    monkeypatch.setattr("stylegan2_icgan.standing.STANDING_PASSES", 5)
    flags = [f"--network={biggan}", RANDOM, "--metrics=fid48_full,pr48_3"]
    lines = {mode: records(*flags, f"--bn-mode={mode}") for mode in ("running", "standing", "batch")}
    assert [lines[mode][0]["batch_norm"] for mode in lines] == ["running", "standing, 5 batches of 32", "batch"]
    values = [lines[mode][0]["results"]["fid48_full"] for mode in lines]
    assert len(set(values)) == 3  # after one step the running statistics are nobody's
    assert records(*flags, "--bn-mode=standing")[0]["results"] == lines["standing"][0]["results"]
    other = values_of(*flags, "--bn-mode=standing", "--trunc=0.5", "--metrics=fid48_full")
    assert other["fid48_full"] not in values  # statistics of truncated images
    plain = [f"--network={trained['none']}", RANDOM, "--metrics=fid48_full"]
    assert "no batch normalisation; leave it out" in refused(calc_metrics.main, *plain, "--bn-mode=standing")
    assert records(*plain)[0]["batch_norm"] is None
    assert "one image is no batch" in refused(calc_metrics.main, *flags, "--bn-mode=batch", "--batch=1")
    assert "--bn-mode is for --network" in refused(
        calc_metrics.main, f"--fake={trained['data']}", f"--data={trained['data']}", "--bn-mode=batch"
    )
    assert "maps z to w, which BigGAN's does not" in refused(calc_metrics.main, *flags[:2], "--metrics=ppl2_zend20")


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_an_image_is_the_same_whatever_else_is_asked_for(biggan, mode):
    flags = Flags(bn_mode=mode, noise_mode="random", batch=8)
    model = load_model(biggan, torch.device("cpu"))
    images = Generated(model, make_conditions(model, flags, None, print), 3, flags)
    with images.normalised():
        (many,) = images.batches([np.arange(20)])
        (few,) = images.batches([np.array([11, 3, 19])])
    assert torch.equal(few, many[[11, 3, 19]])


def test_instance_metrics_know_the_instance(trained):
    flags = [f"--network={trained['instance']}", RANDOM, "--neighbours=5"]
    found = values_of(*flags, "--metrics=instance_distance40,instance_pr40_3,memorisation40")
    assert found["instance_distance40"] > 1
    assert 0 <= found["instance_pr40_3_recall"] <= 1
    assert found["memorisation40"] < 0.5


def test_class_metrics_know_the_class(trained):
    flags = [f"--network={trained['instance+class']}", RANDOM, "--metrics=fid48_intra,fid48_few"]
    intra, few = records(*flags)
    assert "4 classes, 0 left out" in intra["notes"][0]
    assert few["num_real"] == 60  # 15 training images each
    (balanced,) = records(*flags[:2], "--metrics=fid48_intra", "--sampling=class")
    assert balanced["sampling"]["balanced"]


def test_seen_and_unseen_combinations_are_those_of_the_reference(trained, tmp_path, refused: Refused):
    images, labels = pattern_images(40, side=16, seed=3)
    plain = write_zip(tmp_path / "plain.zip", images, labels)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "coco.zip", "w") as target:
        names = [name for name in source.namelist() if name != "dataset.json"]
        for name in names:
            target.writestr(name, source.read(name))
        words = {name: {"combination": "seen" if i < 30 else "unseen"} for i, name in enumerate(names)}
        target.writestr("dataset.json", json.dumps({"labels": None, "attributes": words}))
    flags = [f"--network={trained['instance']}", RANDOM, "--metrics=fid200_seen,fid200_unseen"]
    seen, unseen = records(*flags, f"--data={tmp_path / 'coco.zip'}")
    assert (seen["num_real"], unseen["num_real"]) == (30, 10)
    assert seen["num_fake"] + unseen["num_fake"] == 200
    assert seen["num_fake"] > 110  # instances are drawn uniformly
    assert "attribute `combination`" in refused(calc_metrics.main, *flags, f"--data={plain}", "--device=cpu")


def test_other_data_is_conditioned_on_by_the_models_own_extractor(trained, tmp_path):
    other = write_zip(tmp_path / "other.zip", *pattern_images(30, side=16, seed=5))
    flags = [f"--network={trained['instance']}", RANDOM, f"--data={other}", "--neighbours=5"]
    (line,) = records(*flags, "--metrics=instance_distance20")
    assert line["sampling"] == {"from": "30 images of other.zip", "balanced": False, "label": "of the instance"}
    assert line["reference"]["split"] is None
    assert records(*flags, "--metrics=fid20_full", "--split=val")[0]["reference"]["split"] == "val"


@pytest.mark.parametrize("cond", ["none", "instance+class"])
def test_perceptual_metrics(trained, lpips_file, cond):
    flags = [f"--network={trained[cond]}", RANDOM, "--lpips-weights", str(lpips_file)]
    lines = records(*flags, "--metrics=ppl2_wend20,ppl2_zfull20,ppl2_wfull20,lpips_instance20")
    found = {line["metric"]: line for line in lines}
    assert all(line["results"][name] > 0 for name, line in found.items())
    assert all(line["standard_error"][name] > 0 for name, line in found.items())
    assert found["ppl2_wend20"]["results"] != found["ppl2_wfull20"]["results"]
    assert found["ppl2_wend20"]["lpips"]["weights"][0]["sha256"] == sha256(lpips_file)


def test_perceptual_metrics_want_large_enough_images(trained, lpips_file, refused: Refused):
    flags = [f"--network={trained['none']}", RANDOM, "--lpips-weights", str(lpips_file), "--metrics=ppl_wend20"]
    assert "LPIPS takes images of 16 pixels or more; these have 8" in refused(calc_metrics.main, *flags)


# Folders, zips and features.


def folder_of(path: Path, images, names=None) -> Path:
    path.mkdir(parents=True)
    for number, image in enumerate(images):
        PIL.Image.fromarray(image).save(path / f"{number:04d}.png")
    return path


def test_folder_against_zip_with_the_same_images_is_zero(tmp_path):
    images, _ = pattern_images(40)
    archive, folder = write_zip(tmp_path / "a.zip", images), folder_of(tmp_path / "b", images)
    found = values_of(f"--data={archive}", f"--fake={folder}", RANDOM, "--metrics=fid40_full,pr40_3_full,kid40_full")
    assert found["fid40_full"] == pytest.approx(0, abs=1e-6)
    assert found["pr40_3_full_precision"] == found["pr40_3_full_recall"] == 1.0
    others, _ = pattern_images(40, seed=1)
    inverted = folder_of(tmp_path / "c", [255 - image for image in others])
    assert values_of(f"--data={archive}", f"--fake={inverted}", RANDOM, "--metrics=fid40_full")["fid40_full"] > 1


def test_collapsed_images_have_precision_and_no_recall(tmp_path):
    images, _ = pattern_images(60)
    rng = np.random.default_rng(0)
    collapsed = [(images[0] + rng.integers(0, 2, (8, 8))).clip(0, 255).astype(np.uint8) for _ in range(60)]
    real, fake = folder_of(tmp_path / "a", images), folder_of(tmp_path / "b", collapsed)
    found = values_of(f"--data={real}", f"--fake={fake}", RANDOM, "--metrics=pr60_3_full")
    assert found["pr60_3_full_precision"] == 1.0
    assert found["pr60_3_full_recall"] < 0.05
    swapped = values_of(f"--data={fake}", f"--fake={real}", RANDOM, "--metrics=pr60_3_full")
    assert swapped["pr60_3_full_precision"] < 0.05
    assert swapped["pr60_3_full_recall"] == 1.0


def test_any_size_and_workers_give_the_same(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 33, 3), dtype=np.uint8) for _ in range(40)]
    a, b = folder_of(tmp_path / "a", images), folder_of(tmp_path / "b", images[::-1])
    flags = [f"--data={a}", f"--fake={b}", RANDOM, "--metrics=fid30_full", "--no-cache"]
    (line,) = records(*flags)
    assert line["reference"]["resolution"] == [20, 33]
    result = invoke(calc_metrics.main, *flags, "--device=cpu", "--json", "--workers=2")
    assert json.loads(result.stdout)["results"] == line["results"]


def test_a_gpu_has_as_many_decoders_as_there_are_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Flags().decoders == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [Flags(gpus=gpus).decoders for gpus in (1, 4, 16)] == [8, 4, 2]
    assert Flags(device="cpu").decoders == 2
    assert Flags(workers=0).decoders == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_decoded_while_the_detector_is_at_work(tmp_path, monkeypatch, workers):
    folder = folder_of(tmp_path / "a", [np.full((8, 8), i, np.uint8) for i in range(16)])
    images = FileImages(folder, None, workers, "--data")

    def noted(ids, decode=images._decode):
        (tmp_path / f"{ids[0]}.txt").write_text(str(time.monotonic()))
        return decode(ids)

    monkeypatch.setattr(images, "_decode", noted)
    done = []

    class Slow(RandomProjection):
        batch = 1

        def features(self, images):
            time.sleep(0.05)
            done.append(time.monotonic())
            return super().features(images)

    seen = torch.cat(list(extract(images, Slow(), np.arange(16))))
    begun = [float((tmp_path / f"{i}.txt").read_text()) for i in range(16)]
    ahead = sum(
        start < end for start, end in zip(begun[1:], done, strict=False)
    )  # before its predecessor was done with
    assert ahead == 0 if workers == 0 else ahead > 10
    torch.testing.assert_close(seen, RandomProjection().features(next(images.batches([np.arange(16)]))))


def test_whatever_the_file_the_pixels_are_those_of_any_viewer(tmp_path):
    """The fast decoder of plain files and the careful one of all others agree."""
    rng = np.random.default_rng(0)
    rgb, grey = rng.integers(0, 256, (12, 9, 3), dtype=np.uint8), rng.integers(0, 256, (12, 9), dtype=np.uint8)
    hole = rgb.copy()
    hole[3, 4] = 1, 2, 3
    (tmp_path / "a").mkdir()
    for name, image, more in (
        ("a.png", PIL.Image.fromarray(rgb), {}),
        ("b.bmp", PIL.Image.fromarray(rgb), {}),
        ("c.png", PIL.Image.fromarray(grey), {}),
        ("d.png", PIL.Image.fromarray(hole), {"transparency": (1, 2, 3)}),
        ("e.png", PIL.Image.fromarray(rgb).quantize(200), {}),
        ("f.png", PIL.Image.fromarray(np.dstack([rgb, np.zeros_like(grey)])), {}),
        ("g.png", PIL.Image.fromarray(grey.astype(np.int32) * 257).convert("I;16"), {}),
    ):
        image.save(tmp_path / "a" / name, **more)
    (seen,) = FileImages(tmp_path / "a", None, 0, "--data").batches([np.arange(7)])
    seen = seen.permute(0, 2, 3, 1).numpy()
    assert (seen[:2] == rgb).all()
    assert (seen[[2, 6]] == grey[..., None]).all()
    hole[3, 4] = 255  # a transparent pixel shows white
    assert (seen[3] == hole).all()
    assert np.abs(seen[4].astype(int) - rgb).mean() < 30
    assert (seen[5] == 255).all()


def test_sizes_that_differ_are_refused_unless_resized(tmp_path, refused: Refused):
    images, _ = pattern_images(39)
    real = folder_of(tmp_path / "a", [*images, np.zeros((12, 10), np.uint8)])
    fake = folder_of(tmp_path / "b", images)
    flags = [f"--data={real}", f"--fake={fake}", RANDOM, "--metrics=fid30_full", "--workers=0"]
    assert "0000.png is 8x8, 0039.png is 10x12; expected images of one size" in refused(calc_metrics.main, *flags)
    (line,) = records(*flags, "--resize=16")
    assert line["reference"]["resize"] == "center-crop, lanczos, 16"
    large = folder_of(tmp_path / "c", pattern_images(40, side=16)[0])
    flags[0] = f"--data={large}"
    assert "resolution [16, 16], what is measured [8, 8]" in refused(calc_metrics.main, *flags)


def test_features_are_measured_without_any_detector(tmp_path, refused: Refused):
    draw = np.random.default_rng(0)
    real, fake = draw.standard_normal((200, 5)), draw.standard_normal((300, 5)) + np.array([3, 0, 0, 0, 0])
    np.save(tmp_path / "real.npy", real.astype(np.float32))
    np.save(tmp_path / "fake.npy", fake)
    flags = [f"--data={tmp_path / 'real.npy'}", f"--fake={tmp_path / 'fake.npy'}"]
    found = values_of(*flags, "--metrics=fid300_full")
    assert found["fid300_full"] == pytest.approx(9, rel=0.15)
    assert "ready-made" not in refused(calc_metrics.main, *flags, "--metrics=fid500_full")
    fake[7, 2] = np.nan
    np.save(tmp_path / "fake.npy", fake)
    assert "row 7 has NaN or infinity" in refused(calc_metrics.main, *flags, "--metrics=fid300_full")
    np.save(tmp_path / "fake.npy", np.ones((10, 3)))
    assert "width 5, what is measured 3" in refused(calc_metrics.main, *flags, "--metrics=fid10_full")
    assert "a .npy of features, the other images" in refused(
        calc_metrics.main, flags[0], f"--fake={write_zip(tmp_path / 'a.zip', pattern_images(20)[0])}", "--metrics=fid10"
    )


def test_a_changed_reference_misses_the_cache(tmp_path):
    images, _ = pattern_images(40)
    real, fake = write_zip(tmp_path / "a.zip", images), folder_of(tmp_path / "b", images)
    flags = [f"--data={real}", f"--fake={fake}", RANDOM, "--metrics=fid40_full"]
    assert values_of(*flags)["fid40_full"] == pytest.approx(0, abs=1e-6)
    write_zip(real, [255 - image for image in images])  # the same path and names
    assert values_of(*flags)["fid40_full"] > 1
    assert len(list((tmp_path / "cache" / "stylegan2_icgan" / "metrics").iterdir())) == 2
    moved = real.rename(tmp_path / "elsewhere.zip")
    assert values_of(f"--data={moved}", *flags[1:])["fid40_full"] > 1
    assert len(list((tmp_path / "cache" / "stylegan2_icgan" / "metrics").iterdir())) == 2


def test_any_network_of_timm_is_a_detector(tmp_path, refused: Refused):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "net.pth")
    images, _ = pattern_images(24)
    real, fake = folder_of(tmp_path / "a", images), folder_of(tmp_path / "b", images)
    flags = [f"--data={real}", f"--fake={fake}", "--metrics=fid24_full", f"--detector-weights={tmp_path / 'net.pth'}"]
    (line,) = records(*flags, "--detector=timm:test_resnet.r160_in1k")
    assert line["results"]["fid24_full"] == pytest.approx(0, abs=1e-6)
    assert line["detector"]["sha256"] == sha256(tmp_path / "net.pth")
    assert "--detector=timm:test_resnt" in refused(calc_metrics.main, *flags, "--detector=timm:test_resnt")


# In the midst of a training.


def test_snapshots_are_measured_as_calc_metrics_does_and_nothing_else_changes(trained):
    dataset = ImageFolderDataset(trained["data"], use_labels=True)
    dataset.decode_into_memory()
    names = "fid48_full,instance_distance20,fid48_intra"
    path = trained["instance+class"]
    custom_ops.set_mode("auto")  # as calc_metrics.py
    measured = SnapshotMetrics(names, dataset, torch.device("cpu"), Flags(detector="random", neighbours=5, workers=0))
    model = load_model(path, torch.device("cpu"))
    before, threads, files = torch.get_rng_state(), torch.get_num_threads(), sorted(path.parent.iterdir())
    measured.check(model.recipe, has_w=True)
    lines = measured(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert sorted(path.parent.iterdir()) == files  # whoever asked writes them
    expected = records(f"--network={path}", RANDOM, f"--metrics={names}", "--neighbours=5")
    different = {"timestamp", "seconds"}
    for line, other in zip(lines, expected, strict=True):
        assert {k: v for k, v in line.items() if k not in different} == {
            k: v for k, v in other.items() if k not in different
        }
    unsaved = dataclasses.replace(model, path=Path("network-snapshot-000001.pt"))
    again = measured(unsaved)
    assert [line["results"] for line in again] == [line["results"] for line in lines]
    assert again[0]["snapshot_sha256"] is None


@pytest.mark.parametrize(
    ("metrics", "cond", "message"),
    [
        ("fid48_ful", "none", "is unknown"),
        ("fid48_few", "none", "class labels"),
        ("instance_distance20", "class", "conditioned on instances"),
        ("fid48_seen", "instance", "attribute `combination`"),
        ("dc48_61", "none", "at least 62 reference images"),
        ("lpips_instance20", "none", "--lpips-weights"),
    ],
)
def test_what_can_not_be_measured_is_said_before_there_is_a_snapshot(trained, tmp_path, metrics, cond, message):
    data = write_zip(tmp_path / "plain.zip", pattern_images(60, side=16)[0]) if "few" in metrics else trained["data"]
    recipe = load_model(trained[cond], torch.device("cpu")).recipe
    flags = Flags(detector="random", lpips_weights=[tmp_path / "none.pth"])
    with pytest.raises(UserError, match=message):
        SnapshotMetrics(metrics, ImageFolderDataset(data), torch.device("cpu"), flags).check(recipe, has_w=True)


def test_what_is_best_must_be_measured(trained, tmp_path, refused: Refused):
    flags = [*TINY_RUN, f"--data={trained['data']}", "--metrics=pr48_3", "--metrics-detector=random"]
    message = refused(train.main, *flags, "--keep-best=pr48_3_recal", f"--outdir={tmp_path}")
    assert "is not measured by --metrics=pr48_3; there are pr48_3, pr48_3_precision, pr48_3_recall." in message
    assert message.endswith("Did you mean 'pr48_3_recall'?")


# What is refused.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics=fid50k_ful"], "Did you mean 'fid50k_full'?"),
        ([], "give what is to be measured"),
        (["--fake={data}"], "a reference, which is missing"),
        (
            ["--fake={data}", "--data={data}", "--seeds=0-3"],
            "--seeds is for --network; --fake is a fixed set of images",
        ),
        (["--fake={data}", "--data={data}", "--trunc=0.5"], "--trunc is for --network"),
        (["--fake={rows}", "--data={rows}", "--metrics=fid4"], "--detector is for images"),
        (["--fake={data}", "--data={data}", "--metrics=fid70_full"], "takes 70 generated images, there are 60"),
        (["--fake={data}", "--data={data}", "--metrics=fid60", "--out={data}/new"], "can't be written there"),
        (["--fake={data}", "--data={data}", "--detector=randm"], "Did you mean 'random'?"),
        (["--fake={data}", "--data={data}", "--metrics=fid60_few"], "--train-data=ZIP"),
        (["--fake={none}", "--data={data}"], "--fake=none.zip does not exist"),
        (["--network={none}", "--data={data}"], "--network=none.zip does not exist"),
        (["--network={snapshot}", "--metrics=fid_seen"], "attribute `combination`"),
        (["--network={snapshot}", "--neighbours=60", "--metrics=instance_distance9"], "at least 61 reference images"),
        (["--network={snapshot}", "--trunc=nan"], "--trunc=nan: expected a number"),
        (["--fake={data}", "--data={data}", "--detector=timm:x", "--metrics=fid60", "--filter=tf"], "its own resize"),
        (["--plot={folder}"], "has no metric-*.jsonl"),
    ],
)
def test_bad_input_is_one_line(trained, tmp_path, refused: Refused, flags, message):
    np.save(tmp_path / "rows.npy", np.eye(4))
    named = {"data": trained["data"], "none": "none.zip", "snapshot": trained["instance"], "folder": tmp_path}
    named["rows"] = tmp_path / "rows.npy"
    words = [flag.format(**named) for flag in flags]
    detector = [] if any(word.startswith("--detector") for word in words) else [RANDOM]
    assert message in refused(calc_metrics.main, *words, *detector, "--workers=0", "--device=cpu")


def test_inception_is_never_replaced_by_something_else(trained, refused: Refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    line = refused(calc_metrics.main, f"--network={trained['none']}", "--metrics=fid48_full", "--device=cpu")
    assert "pip install torch-fidelity" in line


def test_unlabelled_data_has_no_classes_to_measure(trained, tmp_path, refused: Refused):
    plain = write_zip(tmp_path / "plain.zip", pattern_images(60, side=16)[0])
    flags = [f"--network={trained['instance']}", f"--data={plain}", RANDOM, "--metrics=fid48_intra", "--device=cpu"]
    assert "class labels of the reference" in refused(calc_metrics.main, *flags)


def test_a_damaged_image_is_named(tmp_path, refused: Refused):
    folder = folder_of(tmp_path / "a", pattern_images(20)[0])
    whole = (folder / "0007.png").read_bytes()
    (folder / "0007.png").write_bytes(whole[: len(whole) // 2])
    other = folder_of(tmp_path / "b", pattern_images(20)[0])
    flags = [f"--data={other}", f"--fake={folder}", RANDOM, "--metrics=fid20_full", "--workers=0"]
    assert "0007.png" in refused(calc_metrics.main, *flags)


def test_several_processes_are_not_started_for_what_can_not_work(trained, tmp_path, refused: Refused, monkeypatch):
    """Or each of them would say so."""

    def started(*_: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(calc_metrics, "relaunch", started)
    plain = write_zip(tmp_path / "plain.zip", pattern_images(60, side=16)[0])
    flags = [f"--network={trained['none']}", RANDOM, "--gpus=2", "--device=cpu"]
    images = [f"--fake={plain}", f"--data={plain}", RANDOM, "--gpus=2", "--device=cpu"]
    for words, message in (
        ([*flags, "--metrics=fid48_ful"], "is unknown"),
        ([*flags, "--metrics=fid48_few", f"--data={plain}"], "class labels"),
        ([*flags, "--metrics=ppl2_wend20", "--lpips-weights=none.pth"], "does not exist"),
        ([*images, "--metrics=fid70"], "takes 70 generated images, there are 60"),
    ):
        assert message in refused(calc_metrics.main, *words)
    with pytest.raises(AssertionError, match="started"):
        invoke(calc_metrics.main, *flags, "--metrics=fid48")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    message = refused(calc_metrics.main, *flags[:-1], "--metrics=fid48", "--device=cuda")
    assert message == "Error: --gpus=2: there are 1 on this machine; expected no more"


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(trained, tmp_path):
    flags = [
        f"--network={trained['instance']}",
        RANDOM,
        "--metrics=fid300_full,is300,pr300_3",
        "--json",
        "--device=cpu",
    ]
    one = records(*flags, f"--out={tmp_path / 'one'}")
    command = [sys.executable, str(ROOT / "calc_metrics.py"), *flags, "--gpus=2", "--no-cache", f"--out={tmp_path}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    written = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    two = [json.loads(line) for line in written]
    assert [line["results"] for line in two] == [line["results"] for line in one]
    assert [line["num_gpus"] for line in two] == [2] * 3
    assert json.loads((tmp_path / "metric-is300.jsonl").read_text()) == two[1]  # one of them writes
