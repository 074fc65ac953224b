"""Where decoded images are kept: the same pixels from everywhere, nothing half-written taken for whole."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_RUN, Refused, invoke, pattern_images, write_zip

import train
from stylegan2_icgan import sources
from stylegan2_icgan.sources import check_cache, keep_decoded
from torch_utils.command_line import UserError
from training import cache
from training.dataset import ImageFolderDataset, LabelledSource
from training.loading import make_loader

CPU = torch.device("cpu")


def silent(line: str) -> None:
    pytest.fail(f"said: {line}")


def fill(dataset: ImageFolderDataset, where: str) -> None:
    {
        "ram": dataset.decode_into_memory,
        "gpu": lambda: dataset.decode_onto(CPU),
        "disk": dataset.decode_to_disk,
        "none": lambda: None,
    }[where]()


@pytest.mark.parametrize("where", ["ram", "gpu", "disk"])
@pytest.mark.parametrize("block_bytes", [100, 1 << 20])  # several blocks, the last one short; and one
def test_decoded_images_are_the_images(
    patterns_zip: Path, where: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "BLOCK_BYTES", block_bytes * 3)
    dataset = ImageFolderDataset(patterns_zip, max_images=37)
    order = [36, 0, 5, 5]
    expected = dataset.images(order)
    fill(dataset, where)
    monkeypatch.setattr(dataset, "decode_images", lambda indices: pytest.fail("read the file again"))
    assert torch.equal(dataset.images(order), expected)
    assert torch.equal(dataset.training_images(np.array(order)), expected)
    dataset.images(order)[:] = 0
    assert torch.equal(dataset.images(order), expected)  # a batch is a copy
    assert dataset.in_memory == (where != "disk")


def test_helper_processes_fill_the_cache_in_order(patterns_zip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    expected = dataset.images(range(40))
    monkeypatch.setattr(cache, "BLOCK_BYTES", 64 * 3)
    monkeypatch.setattr(cache, "PATIENCE_SEC", 0.0)
    monkeypatch.setattr(cache, "_cores", lambda: 2)
    parent = os.getpid()
    seen: list[int] = []
    original = dataset.decode_images

    def watched(indices: np.ndarray) -> np.ndarray:
        if os.getpid() == parent:
            seen.append(int(indices[0]))
        return original(indices)

    monkeypatch.setattr(dataset, "decode_images", watched)
    dataset.decode_into_memory()
    assert seen == [0]  # this process decoded the first block only
    assert torch.equal(dataset.images(range(40)), expected)


def test_helpers_name_a_damaged_image_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "bad.zip", pattern_images(12)[0])
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT", content.find(b"img00000007.png")) + 6] ^= 0xFF
    path.write_bytes(content)
    monkeypatch.setattr(cache, "BLOCK_BYTES", 64)
    monkeypatch.setattr(cache, "PATIENCE_SEC", 0.0)
    monkeypatch.setattr(cache, "_cores", lambda: 2)
    with pytest.raises(UserError, match=r"img00000007\.png can't be read \(damaged") as caught:
        ImageFolderDataset(path).decode_to_disk()
    assert "Traceback" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]  # nothing half-written is left


# -- the file ------------------------------------------------------------------------------------------------------


def test_decoded_file_is_made_once_and_is_a_plain_array(patterns_zip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    assert not dataset.use_decoded_file()
    dataset.decode_to_disk()
    file = patterns_zip.with_name("patterns.decoded.npy")
    array = np.load(file, mmap_mode="r")
    assert (array.dtype, array.shape) == (np.uint8, (40, 1, 8, 8))
    assert np.array_equal(array[7], dataset.image(7))

    later = ImageFolderDataset(patterns_zip)
    monkeypatch.setattr(later, "decode_images", lambda indices: pytest.fail("decoded again"))
    later.decode_to_disk()
    assert later.use_decoded_file()
    assert torch.equal(later.images([3]), dataset.images([3]))


def test_decoded_file_of_a_changed_zip_is_made_again(tmp_path: Path) -> None:
    images, _ = pattern_images(6)
    path = write_zip(tmp_path / "data.zip", images)
    ImageFolderDataset(path).decode_to_disk()
    images[2] = 255 - images[2]
    changed = ImageFolderDataset(write_zip(path, images))
    assert not changed.use_decoded_file()
    changed.decode_to_disk()
    assert np.array_equal(changed.images([2])[0, 0], images[2])


@pytest.mark.parametrize("damage", ["cut", "grown", "seal", "junk", "empty"])
def test_decoded_file_that_is_not_whole_is_made_again(patterns_zip: Path, damage: str) -> None:
    ImageFolderDataset(patterns_zip).decode_to_disk()
    file = patterns_zip.with_name("patterns.decoded.npy")
    whole = file.read_bytes()
    spoilt = {
        "cut": whole[:-500],
        "grown": whole[:1000] + b"x" + whole[1000:],
        "seal": whole[:-20] + b"x" + whole[-19:],
        "junk": b"junk",
        "empty": b"",
    }[damage]
    file.write_bytes(spoilt)
    dataset = ImageFolderDataset(patterns_zip)
    assert not dataset.use_decoded_file()
    dataset.decode_to_disk()
    assert file.read_bytes() == whole


def test_leftovers_of_killed_processes_are_removed(patterns_zip: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead, alive, other = (
        patterns_zip.with_name(f".{name}.{process}-0123abcd.tmp")
        for name, process in [
            ("patterns.decoded.npy", child),
            ("patterns.decoded.npy", os.getppid()),
            ("others.decoded.npy", child),
        ]
    )
    for file in (dead, alive, other):
        file.write_bytes(b"half")
    ImageFolderDataset(patterns_zip).decode_to_disk()
    assert not dead.exists() and alive.exists() and other.exists()


def test_subset_has_a_file_of_its_own(patterns_zip: Path) -> None:
    ImageFolderDataset(patterns_zip).decode_to_disk()
    part = ImageFolderDataset(patterns_zip, max_images=9, subset_seed=3)
    assert not part.use_decoded_file()
    part.decode_to_disk()
    assert np.load(patterns_zip.with_name("patterns.subset9-3.decoded.npy"), mmap_mode="r").shape[0] == 9
    assert np.array_equal(part.images([4])[0], part.image(4))
    assert ImageFolderDataset(patterns_zip).use_decoded_file()


def test_decoded_file_goes_to_the_users_cache_where_the_data_cannot_be_written(
    patterns_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who can write anywhere
    ImageFolderDataset(patterns_zip).decode_to_disk()
    assert not patterns_zip.with_name("patterns.decoded.npy").exists()
    assert len(list((tmp_path / "cache").rglob("patterns-*.decoded.npy"))) == 1
    assert ImageFolderDataset(patterns_zip).use_decoded_file()


def test_full_disk_is_said_before_work_starts(patterns_zip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    monkeypatch.setattr(dataset, "decode_images", lambda indices: pytest.fail("worked for nothing"))
    with pytest.raises(
        UserError, match=r"--cache=disk: .*patterns\.decoded\.npy can't be written .*free.*--cache=none"
    ):
        dataset.decode_to_disk()
    assert list(patterns_zip.parent.glob("*decoded*")) == []


# -- worker processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["none", "ram", "disk"])
def test_loader_yields_the_same_from_every_cache(patterns_zip: Path, where: str) -> None:
    source = LabelledSource(ImageFolderDataset(patterns_zip, use_labels=True))
    plain = make_loader(source, seed=3, start=16, batch=8)
    expected = [next(plain) for _ in range(3)]
    fill(source.dataset, where)
    for workers in (0, 2):
        loader = make_loader(source, seed=3, start=16, batch=8, workers=workers)
        for one in expected:
            assert all(torch.equal(a, b) for a, b in zip(one, next(loader), strict=True))


@pytest.mark.parametrize("where", ["ram", "gpu", "disk"])
def test_decoded_images_are_never_pickled(tmp_path: Path, where: str) -> None:
    dataset = ImageFolderDataset(write_zip(tmp_path / "data.zip", pattern_images(12, side=128)[0]))
    expected = dataset.images(range(12))
    fill(dataset, where)
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000 < dataset.decoded_bytes
    copy = pickle.loads(sent)
    assert torch.equal(copy.images(range(12)), expected)
    copy.decode_images = lambda indices: pytest.fail("decoded")  # a file is mapped there, memory is not
    if where == "disk":
        assert torch.equal(copy.images([3]), expected[3:4])
    else:
        assert not copy.in_memory


# -- the choice ----------------------------------------------------------------------------------------------------


def chosen(dataset: ImageFolderDataset, monkeypatch: pytest.MonkeyPatch, where: str, device: str, free: dict[str, int]):
    """What keep_decoded does with that much free memory, and says; the CUDA device is played by the CPU."""
    done, said = [], []
    monkeypatch.setattr(sources, "free_memory", lambda device: free[device.type])
    monkeypatch.setattr(dataset, "decode_onto", lambda device, say: done.append(device.type))
    monkeypatch.setattr(dataset, "decode_into_memory", lambda say: done.append("ram"))
    monkeypatch.setattr(dataset, "decode_to_disk", lambda say: done.append("disk"))
    keep_decoded(dataset, where, None, torch.device(device), said.append)
    return done, said


@pytest.mark.parametrize(
    ("device", "gpu_free", "ram_free", "expected", "says"),
    [
        ("cuda", 4 * 2560, 4 * 2560, ["cuda"], "40 decoded images are kept on cuda"),
        ("cuda", 4 * 2560 - 1, 4 * 2560, ["ram"], ""),
        ("cpu", 1 << 40, 4 * 2560, ["ram"], ""),
        ("cpu", 1 << 40, 4 * 2560 - 1, [], "images are decoded as they are drawn"),
    ],
)
def test_auto_takes_the_fastest_place_of_which_a_quarter_is_enough(
    patterns_zip: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    gpu_free: int,
    ram_free: int,
    expected: list[str],
    says: str,
) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    assert dataset.decoded_bytes == 2560
    done, said = chosen(dataset, monkeypatch, "auto", device, {"cuda": gpu_free, "cpu": ram_free})
    assert done == expected
    assert len(said) == (1 if says else 0)
    assert says in "".join(said)


def test_auto_uses_a_decoded_file_when_memory_is_short(patterns_zip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ImageFolderDataset(patterns_zip).decode_to_disk()
    done, said = chosen(ImageFolderDataset(patterns_zip), monkeypatch, "auto", "cpu", {"cpu": 2560})
    assert done == ["disk"]
    assert "patterns.decoded.npy" in said[0]


def test_workers_keep_images_off_the_gpu(patterns_zip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    monkeypatch.setattr(sources, "free_memory", lambda device: 1 << 40)
    monkeypatch.setattr(dataset, "decode_onto", lambda device, say: pytest.fail("workers can't reach it there"))
    keep_decoded(dataset, "auto", 2, torch.device("cuda"), silent)
    assert dataset.in_memory
    with pytest.raises(UserError, match="--workers=2 given with --cache=gpu"):
        check_cache("gpu", 2, torch.device("cuda"))


def test_cache_that_cannot_work_is_refused(
    patterns_zip: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*TINY_RUN, "--kimg=0.016", f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}"]
    assert "--cache=gpu, but this run trains on the CPU" in refused(train.main, *flags, "--cache=gpu")
    assert "Did you mean 'disk'?" in refused(train.main, *flags, "--cache=disc")
    monkeypatch.setattr(sources, "free_memory", lambda device: 1000)
    assert "decoded images take 0.00 GiB" in refused(train.main, *flags, "--cache=ram")


def test_a_run_from_the_file_ends_like_one_from_memory(patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--kimg=0.032", "--workers=0"]
    finals = []
    for where in ("none", "ram", "disk"):
        result = invoke(train.main, *flags, f"--cache={where}", f"--outdir={tmp_path / where}")
        assert result.exit_code == 0, result.output
        assert ("are read from" in result.output) == (where == "disk")
        (state,) = (tmp_path / where).rglob("training-state-000000.pt")
        finals.append(torch.load(state, weights_only=True)["members"]["G"])
    for name, tensor in finals[0].items():
        assert all(torch.equal(tensor, final[name]) for final in finals[1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_on_the_gpu_are_drawn_there(patterns_zip: Path) -> None:
    source = LabelledSource(ImageFolderDataset(patterns_zip))
    expected = next(make_loader(source, 0, 0, 8))
    source.dataset.decode_onto(torch.device("cuda"))
    sample = next(make_loader(source, 0, 0, 8, pin_memory=True))
    assert sample.image.is_cuda
    assert torch.equal(sample.image.cpu(), expected.image)
    assert source.showcase(2, 3)[1].device == CPU
