"""Making an instance store: shards, restarts, several processes, engines, and features made elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import pattern_images, write_zip

from stylegan2_icgan import extraction, neighbour_graph
from stylegan2_icgan.making import StoreOptions, ensure_store
from stylegan2_icgan.shards import Job, read_shard, run_in_ranks, run_job, shard_file, write_shard
from stylegan2_icgan.store import InstanceStore
from torch_utils.command_line import UserError
from torch_utils.files import Countdown
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).parents[1]
ARRAYS = ("features.npy", "features_mirror.npy", "neighbours.npy", "radii.npy")


@pytest.fixture(autouse=True)
def short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows in a shard of neighbours as in one of features."""
    monkeypatch.setattr(neighbour_graph, "QUERIES", 1)


@pytest.fixture
def dataset(patterns_zip: Path) -> ImageFolderDataset:
    """40 images: 5 shards of 8."""
    return ImageFolderDataset(patterns_zip)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ARRAYS}


def made(dataset: ImageFolderDataset, folder: Path, shard_rows: int = 8, **more: object) -> InstanceStore:
    """A store in `folder`."""
    options = StoreOptions(**{"k": 5, "instances": str(folder)} | more)  # type: ignore[arg-type]
    return ensure_store(dataset, options, shard_rows=shard_rows)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path.name.startswith("."))


# -- shards ---


def test_shard_is_whole_or_counts_as_not_there(tmp_path: Path) -> None:
    arrays = [np.arange(6).reshape(3, 2), np.ones(3, dtype=np.float16)]
    write_shard(tmp_path, 4, arrays)
    for array, back in zip(arrays, read_shard(tmp_path, 4, 2) or [], strict=True):
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)
    assert read_shard(tmp_path, 5, 2) is None
    file = shard_file(tmp_path, 4)
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]):
        file.write_bytes(damaged)
        assert read_shard(tmp_path, 4, 2) is None


def test_work_is_the_same_in_any_number_of_shards(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    many, one = made(dataset, tmp_path / "many"), made(dataset, tmp_path / "one", shard_rows=1000)
    np.testing.assert_allclose(many.features, one.features, atol=1e-6)  # products of other sizes round otherwise
    assert np.array_equal(many.neighbours, one.neighbours)
    assert left_over(many.folder) == []


class Killed(BaseException):
    """As good as kill -9: nothing catches it on the way."""


@pytest.mark.parametrize("after", [0, 2, 4, 6, 9])
def test_killed_work_goes_on_where_it_stopped(
    dataset: ImageFolderDataset, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`after` shards, of 5 of features and then 5 of neighbours, are done when the process is killed."""
    whole = made(dataset, tmp_path / "whole")
    done: list[int] = []

    def mortal(job: Job, shards: Sequence[int], progress: Countdown) -> None:
        for shard in shards:
            if len(done) == after:
                raise Killed
            job(shard)
            done.append(shard)

    options = StoreOptions(k=5, instances=str(tmp_path / "store"))
    with pytest.raises(Killed):
        ensure_store(dataset, options, engine=mortal, shard_rows=8)
    assert not (tmp_path / "store").exists()
    again: list[int] = []

    def counting(job: Job, shards: Sequence[int], progress: Countdown) -> None:
        again.extend(shards)
        run_in_ranks(job, shards, progress)

    store = ensure_store(dataset, options, engine=counting, shard_rows=8)
    assert len(again) == 10 - after  # nothing is done twice
    assert content(store.folder) == content(whole.folder)
    assert left_over(store.folder) == []


def test_damaged_shard_is_made_again(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    whole = made(dataset, tmp_path / "whole")
    said: list[str] = []

    def damaging(job: Job, shards: Sequence[int], progress: Countdown) -> None:
        run_in_ranks(job, shards, progress)
        file = shard_file(job.folder, 3)
        file.write_bytes(file.read_bytes()[:-9])

    options = StoreOptions(k=5, instances=str(tmp_path / "store"))
    store = ensure_store(dataset, options, say=said.append, engine=damaging, shard_rows=8)
    assert sum("000003.shard is damaged (checksum) or gone; it is made again" in line for line in said) == 2
    assert content(store.folder) == content(whole.folder)


def test_work_begun_with_other_data_is_thrown_away(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    def mortal(job: Job, shards: Sequence[int], progress: Countdown) -> None:
        job(0)
        raise Killed

    options, said = StoreOptions(k=5, instances=str(tmp_path / "store")), []
    with pytest.raises(Killed):
        ensure_store(dataset, options, engine=mortal, shard_rows=8)
    images, labels = pattern_images(40, seed=1)
    other = ImageFolderDataset(write_zip(tmp_path / "other.zip", images, labels))
    store = ensure_store(other, options, say=said.append, shard_rows=8)
    assert any("begun with other data or another extractor; it is thrown away" in line for line in said)
    assert content(store.folder) == content(made(other, tmp_path / "fresh").folder)


def test_features_stay_when_more_neighbours_or_another_method_are_asked_for(
    dataset: ImageFolderDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(dataset, tmp_path / "store", k=3)
    before = content(store.folder)
    monkeypatch.setattr(extraction.FeatureJob, "__call__", lambda *args: pytest.fail("features are made again"))
    more = made(dataset, tmp_path / "store", k=7)
    assert more.k == 7
    assert content(more.folder)["features.npy"] == before["features.npy"]
    assert np.array_equal(more.neighbours[:, :3], store.neighbours)
    assert made(dataset, tmp_path / "store", k=7, neighbours="faiss").manifest["neighbours"]["method"] == "faiss"
    assert left_over(store.folder) == []


def test_features_can_be_stored_in_half_the_space(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    full, half = made(dataset, tmp_path / "full"), made(dataset, tmp_path / "half", feature_dtype="float16")
    assert half.features.dtype == np.float16
    np.testing.assert_allclose(half.features, full.features, atol=1e-3)
    assert (half.neighbours == full.neighbours).mean() > 0.9


def test_changed_arrays_are_found(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    store = made(dataset, tmp_path / "store")
    store.verify()
    for name in ARRAYS:
        file = store.folder / name
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{name} is damaged \(checksum\)"):
            InstanceStore(store.folder, store.manifest, {}).verify()
        file.write_bytes(before)


# -- a store that is there ---


def test_method_that_gave_way_is_not_asked_again_and_a_larger_k_is_not_lost(
    dataset: ImageFolderDataset, tmp_path: Path
) -> None:
    store = made(dataset, tmp_path / "store", k=7, neighbours="ivf")  # far too few rows for it
    assert (store.manifest["neighbours"]["asked"], store.manifest["neighbours"]["method"]) == ("ivf", "exact")
    before = (store.folder / "manifest.json").stat().st_ino
    for neighbours in ("ivf", "exact", "auto"):
        assert made(dataset, tmp_path / "store", k=3, neighbours=neighbours).k == 7
    assert (store.folder / "manifest.json").stat().st_ino == before
    assert made(dataset, tmp_path / "store", k=3, neighbours="rerank").k == 7


def test_store_that_cannot_be_written_serves(
    dataset: ImageFolderDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(dataset, tmp_path / "store")

    def read_only(self: Path, *args: object, **more: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("unlink", "mkdir", "rename", "write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, read_only)
    assert made(dataset, tmp_path / "store").k == 5


@pytest.mark.parametrize("when", [1, 2])
def test_kill_while_a_store_gets_its_name_loses_nothing(
    dataset: ImageFolderDataset, tmp_path: Path, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the renames that put the new store in the place of one with fewer neighbours."""
    made(dataset, tmp_path / "store", k=3)
    rename, calls = Path.rename, []

    def mortal(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == when + 1:  # the first fails, since there is a store in the way
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "rename", mortal)
        made(dataset, tmp_path / "store", k=6)
    monkeypatch.setattr(extraction.FeatureJob, "__call__", lambda *args: pytest.fail("features are made again"))
    monkeypatch.setattr(neighbour_graph.NeighbourJob, "__call__", lambda *args: pytest.fail("searched again"))
    store = made(dataset, tmp_path / "store", k=6)
    assert store.k == 6
    assert left_over(store.folder) == []


def test_shards_of_another_index_are_not_used(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    whole = made(dataset, tmp_path / "whole")

    def mortal(job: Job, shards: Sequence[int], progress: Countdown) -> None:
        searches = isinstance(job, neighbour_graph.NeighbourJob)
        run_in_ranks(job, shards[:3] if searches else shards, progress)
        if searches:
            raise Killed

    options = StoreOptions(k=5, instances=str(tmp_path / "store"))
    with pytest.raises(Killed):
        ensure_store(dataset, options, engine=mortal, shard_rows=8)
    place = tmp_path / ".store.making"
    index = json.loads((place / "index" / "index.json").read_text())
    (place / "index" / "index.json").write_text(json.dumps(index | {"note": "another"}))
    for shard in range(3):
        write_shard(place / "neighbours.shards", shard, [np.zeros((8, 5), np.int32), np.zeros((8, 5), np.float32)])
    assert content(made(dataset, tmp_path / "store").folder) == content(whole.folder)


def test_any_file_name_will_do(tmp_path: Path) -> None:
    images, _ = pattern_images(20)
    folder = tmp_path / "data"
    folder.mkdir()
    for number, image in enumerate(images):
        PIL.Image.fromarray(image).save(tmp_path / "image.png")
        name = f"{number:02d} a\nb\u2028c\\n".encode() + (b"\xe9.png" if number == 7 else b".png")
        (tmp_path / "image.png").rename(os.fsdecode(os.fsencode(folder) + b"/" + name))
    made(ImageFolderDataset(folder), tmp_path / "store")
    assert made(ImageFolderDataset(folder), tmp_path / "store").manifest["num_images"] == 20


def test_what_does_not_fit_a_store_is_refused(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    store = made(dataset, tmp_path / "store")
    for name, value, words in (
        ("feature_dtype", "float16", "are float32"),
        ("extractor_weights", "nope.pth", "made with pca, which has none"),
        ("instance_feats", "nope.npy", r"nope\.npy does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            made(dataset, tmp_path / "store", **{name: value})
    features = store.folder / "features.npy"
    before = features.read_bytes()
    features.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(UserError, match=r"features\.npy is damaged \(checksum\)"):
        made(dataset, tmp_path / "store", k=8)
    np.save(features, np.full((40, store.h_dim), np.nan, np.float32))
    with pytest.raises(UserError, match="not of unit length"):
        made(dataset, tmp_path / "store")


# -- several processes ---


def tool(*args: str | Path, launcher: Sequence[str] = (), **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(ROOT / "instance_tool.py"), *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **more)  # type: ignore[call-overload,no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "ivf"])
def test_two_processes_make_what_one_makes(dataset: ImageFolderDataset, tmp_path: Path, method: str) -> None:
    one = made(dataset, tmp_path / "one", neighbours=method)
    arguments = ["make", f"--data={dataset.path}", "--k=5", f"--neighbours={method}", "--shard-rows=8"]
    result = tool(
        *arguments,
        f"--instances={tmp_path / 'two'}",
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    )
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "two") == content(one.folder)
    assert result.stdout.count("Done after") == 1  # one of them speaks


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_real_process(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    whole = made(dataset, tmp_path / "whole", shard_rows=1)
    folder = tmp_path / "store"
    arguments = ["make", f"--data={dataset.path}", "--k=5", "--shard-rows=1", f"--instances={folder}"]
    command = [sys.executable, str(ROOT / "instance_tool.py"), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    shards = folder.with_name(".store.making") / "features.shards"
    while not shards.exists() or len(list(shards.iterdir())) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    result = tool(*arguments)
    assert result.returncode == 0, result.stderr
    assert content(folder) == content(whole.folder)
    assert left_over(folder) == []


@pytest.mark.slow
def test_two_starts_at_once_share_one_store(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    arguments = ["make", f"--data={dataset.path}", "--k=5", "--shard-rows=1", f"--instances={tmp_path / 'store'}"]
    command = [sys.executable, str(ROOT / "instance_tool.py"), *arguments]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("neighbours: 5 each" in output for output in outputs)
    assert content(tmp_path / "store") == content(made(dataset, tmp_path / "whole", shard_rows=1).folder)


@pytest.mark.slow
def test_ray_makes_what_one_process_makes(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    one = made(dataset, tmp_path / "one")
    arguments = [f"--data={dataset.path}", "--k=5", "--shard-rows=8", "--engine=ray", "--ray-workers=2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = tool("make", *arguments, f"--instances={tmp_path / 'ray'}", env=environment)
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "ray") == content(one.folder)


# -- features made elsewhere ---


def given(dataset: ImageFolderDataset, file: Path, **options: object) -> InstanceStore:
    folder = file.with_suffix(".instances")
    return ensure_store(dataset, StoreOptions(k=5, instance_feats=str(file), instances=str(folder), **options))  # type: ignore[arg-type]


def test_given_features_are_keyed_by_name(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(size=(40, 6)).astype(np.float32)
    np.save(tmp_path / "rows.npy", h)
    order = rng.permutation(40)
    np.savez(tmp_path / "named.npz", features=h[order], features_mirror=-h[order], names=np.array(dataset.names)[order])
    rows, named = given(dataset, tmp_path / "rows.npy"), given(dataset, tmp_path / "named.npz")
    np.testing.assert_allclose(rows.features, h / np.linalg.norm(h, axis=1, keepdims=True), atol=1e-6)
    assert np.array_equal(rows.features, named.features)
    assert np.array_equal(named.features_mirror, -named.features)
    with pytest.raises(UserError, match="without those of the mirror images"):
        _ = rows.features_mirror
    rows.verify()


def test_given_features_that_cannot_be_right_are_refused(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    h = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    bad = {"nan": h.copy(), "zero": h.copy(), "short": h[:39]}
    bad["nan"][7, 2] = np.nan
    bad["zero"][9] = 0
    for name, wrong in bad.items():
        np.save(tmp_path / f"{name}.npy", wrong)
        with pytest.raises(UserError, match=r"--instance-feats|instance_feats"):
            given(dataset, tmp_path / f"{name}.npy")
        assert not (tmp_path / f"{name}.instances").exists()
    np.save(tmp_path / "fine.npy", h)
    given(dataset, tmp_path / "fine.npy")
    with pytest.raises(UserError, match=r"--extractor=pca, but the features in .* were made with"):
        ensure_store(dataset, StoreOptions(k=5, extractor="pca", instances=str(tmp_path / "fine.instances")))
    np.save(tmp_path / "other.npy", h + 1)
    with pytest.raises(UserError, match="is not what the features in"):
        options = StoreOptions(
            k=5, instance_feats=str(tmp_path / "other.npy"), instances=str(tmp_path / "fine.instances")
        )
        ensure_store(dataset, options)


def test_given_names_belong_to_what_tells_files_apart(dataset: ImageFolderDataset, tmp_path: Path) -> None:
    h = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.save(tmp_path / "rows.npy", h)
    given(dataset, tmp_path / "rows.npy")
    (tmp_path / "rows.names.txt").write_text("\n".join(dataset.names[::-1]) + "\n")
    with pytest.raises(UserError, match="is not what the features in"):
        given(dataset, tmp_path / "rows.npy")
    np.save(tmp_path / "same.npy", np.ones((40, 6), np.float32))
    with pytest.raises(UserError, match="all rows are the same"):
        given(dataset, tmp_path / "same.npy")


def test_run_job_says_what_is_there(tmp_path: Path) -> None:
    class Squares:
        folder, num_shards = tmp_path / "shards", 4

        def __call__(self, shard: int) -> None:
            write_shard(self.folder, shard, [np.array([shard**2])])

    job, said = Squares(), []
    run_job(job, run_in_ranks, "squares", said.append)
    assert said == []
    shard_file(job.folder, 2).unlink()
    run_job(job, run_in_ranks, "squares", said.append)
    assert said == ["squares: 3 of 4 shards are there already, going on"]
    assert [read_shard(job.folder, i, 1) for i in range(4)] == [[0], [1], [4], [9]]
