"""calc_metrics.py as a user runs it: snapshots, folders, zips and features; what it refuses; what it records."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY_RUN, Refused, invoke, pattern_images, write_zip

import calc_metrics
import train
from metrics import lpips
from stylegan2_icgan.evaluation.conditions import instance_features, make_conditions
from stylegan2_icgan.evaluation.generated import Generated
from stylegan2_icgan.evaluation.images import FileImages
from stylegan2_icgan.evaluation.options import Flags
from stylegan2_icgan.models import load_model
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
        flags = [*TINY_RUN, f"--data={paths['data']}", f"--cond={cond}", "--k=4", f"--outdir={folder / cond}"]
        assert invoke(train.main, *flags, "--minutes=0.0001").exit_code == 0
        (paths[cond],) = folder.glob(f"{cond}/*/network-snapshot-000000.pt")
    return paths


def records(*flags: str | Path) -> list[dict]:
    result = invoke(calc_metrics.main, "--workers=0", "--device=cpu", "--json", *flags)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def values(*flags: str | Path) -> dict[str, float]:
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
    first = values(*flags)
    assert values(*flags) == first
    assert values(*flags, "--no-cache") == first
    assert values(*flags, "--seeds=1") != first
    assert values(*flags, "--trunc=0.5") != first
    (line,) = records(*flags, "--instances=exemplars")
    assert line["sampling"]["from"] == "60 exemplars"
    assert line["results"] == first  # all images are exemplars here, in the order of the data
    assert values(*flags, "--filter=tf") == first  # images have the detector's size already


def test_several_seeds_give_an_interval(trained):
    flags = [f"--network={trained['class']}", RANDOM, "--metrics=fid48_full"]
    (line,) = records(*flags, "--seeds=0-2")
    each = [values(*flags, f"--seeds={seed}")["fid48_full"] for seed in range(3)]
    assert line["results"]["fid48_full"] == pytest.approx(np.mean(each))
    assert line["standard_error"]["fid48_full"] == pytest.approx(np.std(each, ddof=1) / 3**0.5)
    low, high = line["interval95"]["fid48_full"]
    assert low < min(each) < max(each) < high


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
    assert (run / "metrics.svg").read_text().count("<circle") == 6  # two snapshots; the score has mean and deviation


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


def test_instance_metrics_know_the_instance(trained):
    flags = [f"--network={trained['instance']}", RANDOM, "--neighbours=5"]
    found = values(*flags, "--metrics=instance_distance40,instance_pr40_3,memorisation40")
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


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A narrow LPIPS with random weights, in a file."""
    narrow = tuple(tuple(width // 32 for width in widths) for widths in lpips.BLOCKS)
    monkeypatch.setattr(lpips, "BLOCKS", narrow)
    draw, tensors, width_in, number = torch.Generator().manual_seed(0), {}, 3, 0
    for level, widths in enumerate(narrow):
        for width in widths:
            tensors[f"features.{number}.weight"] = torch.randn(width, width_in, 3, 3, generator=draw) / 4
            tensors[f"features.{number}.bias"] = torch.randn(width, generator=draw)
            width_in, number = width, number + 2
        number += 1
        tensors[f"lin{level}.model.1.weight"] = torch.rand(1, width_in, 1, 1, generator=draw)
    torch.save(tensors, tmp_path / "lpips.pth")
    return tmp_path / "lpips.pth"


@pytest.mark.parametrize("cond", ["none", "instance+class"])
def test_perceptual_metrics(trained, weights, cond):
    flags = [f"--network={trained[cond]}", RANDOM, "--lpips-weights", str(weights)]
    lines = records(*flags, "--metrics=ppl2_wend20,ppl2_zfull20,ppl2_wfull20,lpips_instance20")
    found = {line["metric"]: line for line in lines}
    assert all(line["results"][name] > 0 for name, line in found.items())
    assert all(line["standard_error"][name] > 0 for name, line in found.items())
    assert found["ppl2_wend20"]["results"] != found["ppl2_wfull20"]["results"]
    assert found["ppl2_wend20"]["lpips"]["weights"][0]["sha256"] == sha256(weights)


def test_perceptual_metrics_want_large_enough_images(trained, weights, refused: Refused):
    flags = [f"--network={trained['none']}", RANDOM, "--lpips-weights", str(weights), "--metrics=ppl_wend20"]
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
    found = values(f"--data={archive}", f"--fake={folder}", RANDOM, "--metrics=fid40_full,pr40_3_full,kid40_full")
    assert found["fid40_full"] == pytest.approx(0, abs=1e-6)
    assert found["pr40_3_full_precision"] == found["pr40_3_full_recall"] == 1.0
    others, _ = pattern_images(40, seed=1)
    inverted = folder_of(tmp_path / "c", [255 - image for image in others])
    assert values(f"--data={archive}", f"--fake={inverted}", RANDOM, "--metrics=fid40_full")["fid40_full"] > 1


def test_collapsed_images_have_precision_and_no_recall(tmp_path):
    images, _ = pattern_images(60)
    rng = np.random.default_rng(0)
    collapsed = [(images[0] + rng.integers(0, 2, (8, 8))).clip(0, 255).astype(np.uint8) for _ in range(60)]
    real, fake = folder_of(tmp_path / "a", images), folder_of(tmp_path / "b", collapsed)
    found = values(f"--data={real}", f"--fake={fake}", RANDOM, "--metrics=pr60_3_full")
    assert found["pr60_3_full_precision"] == 1.0
    assert found["pr60_3_full_recall"] < 0.05
    swapped = values(f"--data={fake}", f"--fake={real}", RANDOM, "--metrics=pr60_3_full")
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
    found = values(*flags, "--metrics=fid300_full")
    assert found["fid300_full"] == pytest.approx(9, rel=0.15)
    assert "ready-made" not in refused(calc_metrics.main, *flags, "--metrics=fid500_full")
    fake[7, 2] = np.nan
    np.save(tmp_path / "fake.npy", fake)
    assert "row 7 has NaN or infinity" in refused(calc_metrics.main, *flags, "--metrics=fid300_full")
    np.save(tmp_path / "fake.npy", fake[:, :3])
    np.save(tmp_path / "fake.npy", np.ones((10, 3)))
    assert "width 5, what is measured 3" in refused(calc_metrics.main, *flags, "--metrics=fid10_full")


def test_a_changed_reference_misses_the_cache(tmp_path):
    images, _ = pattern_images(40)
    real, fake = write_zip(tmp_path / "a.zip", images), folder_of(tmp_path / "b", images)
    flags = [f"--data={real}", f"--fake={fake}", RANDOM, "--metrics=fid40_full"]
    assert values(*flags)["fid40_full"] == pytest.approx(0, abs=1e-6)
    write_zip(real, [255 - image for image in images])  # the same path and names
    assert values(*flags)["fid40_full"] > 1
    assert len(list((tmp_path / "cache" / "stylegan2_icgan" / "metrics").iterdir())) == 2
    moved = real.rename(tmp_path / "elsewhere.zip")
    assert values(f"--data={moved}", *flags[1:])["fid40_full"] > 1
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


# What is refused.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics=fid50k_ful"], "Did you mean 'fid50k_full'?"),
        ([], "give what is to be measured"),
        (["--fake={data}"], "a reference, which is missing"),
        (["--fake={data}", "--data={data}", "--seeds=0-3"], "--fake is a fixed set of images"),
        (["--fake={data}", "--data={data}", "--metrics=fid70_full"], "takes 70 generated images, there are 60"),
        (["--fake={data}", "--data={data}", "--detector=randm"], "Did you mean 'random'?"),
        (["--fake={data}", "--data={data}", "--metrics=fid60_few"], "--train-data=ZIP"),
        (["--fake={none}", "--data={data}"], "--fake=none.zip does not exist"),
        (["--network={none}", "--data={data}"], "--network=none.zip does not exist"),
        (["--network={snapshot}", "--metrics=fid_seen"], "attribute `combination`"),
        (["--network={snapshot}", "--neighbours=60", "--metrics=instance_distance9"], "at least 61 reference images"),
        (["--network={snapshot}", "--trunc=nan"], "--trunc must be finite"),
        (["--fake={data}", "--data={data}", "--detector=timm:x", "--metrics=fid60", "--filter=tf"], "its own resize"),
        (["--plot={folder}"], "has no metric-*.jsonl"),
    ],
)
def test_bad_input_is_one_line(trained, tmp_path, refused: Refused, flags, message):
    named = {"data": trained["data"], "none": "none.zip", "snapshot": trained["instance"], "folder": tmp_path}
    words = [flag.format(**named) for flag in flags]
    detector = [] if any(word.startswith("--detector") for word in words) else [RANDOM]
    assert message in refused(calc_metrics.main, *words, *detector, "--workers=0", "--device=cpu")


def test_inception_is_never_replaced_by_something_else(trained, refused: Refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
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


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(trained, tmp_path):
    flags = [
        f"--network={trained['instance']}",
        RANDOM,
        "--metrics=fid300_full,is300,pr300_3",
        "--json",
        "--device=cpu",
    ]
    env = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    one, two = (
        subprocess.run(
            [sys.executable, str(ROOT / "calc_metrics.py"), *flags, *more],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for more in (["--no-cache"], ["--no-cache", "--gpus=2"])
    )
    assert [json.loads(line)["results"] for line in two] == [json.loads(line)["results"] for line in one]
    assert [json.loads(line)["num_gpus"] for line in two] == [2] * 3
