"""What every format owes its user: recognised, converted, labelled, the same bytes however it is run."""

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from conftest import invoke
from format_samples import SAMPLES

import dataset_tool
from training import conversion, partial_zip
from training.formats import FORMATS, SourceOptions, open_format

NAMES = sorted(SAMPLES)


def build(name: str, root: Path, broken: bool = False) -> list[str]:
    """Write the sample; returns the arguments that convert it, without --dest."""
    root.mkdir(parents=True)
    source = SAMPLES[name].build(root, broken)
    options = [option.format(root=root) for option in SAMPLES[name].options]
    return ["convert", "--source", str(source), "--resolution=8", "--workers=1", *options]


def content(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


def convert(arguments: list[str], dest: Path) -> str:
    result = invoke(dataset_tool.main, *arguments, "--dest", dest)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_there_is_a_sample_of_every_format():
    assert SAMPLES.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_format_is_recognised_and_labelled(name, tmp_path):
    sample = SAMPLES[name]
    said = convert(build(name, tmp_path / "in"), tmp_path / "o.zip")
    found = content(tmp_path / "o.zip")
    assert (f"Recognised as {name} (" in said) == (name != "folder" and sample.is_recognised)
    assert found["format"] == name
    assert list(found["sources"].values()) == sample.sources and found["refused"] == {}
    assert found["class_names"] == sample.class_names
    assert found["labels"] == (sample.labels and [[n, i] for n, i in zip(found["sources"], sample.labels, strict=True)])
    counts = sample.labels and [sample.labels.count(i) for i in range(found["num_classes"])]
    assert found["class_counts"] == counts and found["filter"] == "lanczos" and found["crop"] == "center"


@pytest.mark.parametrize("name", NAMES)
def test_broken_image_is_named_and_the_others_are_converted(name, tmp_path):
    sample = SAMPLES[name]
    convert(build(name, tmp_path / "in", broken=True), tmp_path / "o.zip")
    found = content(tmp_path / "o.zip")
    assert sample.refused in found["refused"]
    assert list(found["sources"].values()) == [s for s in sample.sources if not s.startswith(sample.refused)]
    report = json.loads((tmp_path / "o.convert-report.json").read_text())
    assert report["refused"] == found["refused"] and report["images"] == len(found["sources"])
    assert report["format"] == name and report["options"]["--resolution"] == 8


class SharedPool:
    """A ProcessPoolExecutor that outlives its user: starting Python anew for every format takes seconds."""

    workers: ProcessPoolExecutor

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def submit(self, *arguments):
        return self.workers.submit(*arguments)

    def shutdown(self, cancel_futures: bool) -> None:
        pass


@pytest.fixture(scope="module")
def shared_pool():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as workers:
        SharedPool.workers = workers
        yield SharedPool


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes_with_two_workers(name, tmp_path, shared_pool, monkeypatch):
    arguments = build(name, tmp_path / "in", broken=True)
    convert(arguments, tmp_path / "one.zip")
    calls = []
    plain = conversion.convert_files

    def small_tasks(files, recipe, workers, files_per_task):
        calls.append(workers)
        return plain(files, recipe, workers, 1)

    monkeypatch.setattr(conversion, "convert_files", small_tasks)
    monkeypatch.setattr(conversion, "ProcessPoolExecutor", shared_pool)
    monkeypatch.setattr(conversion, "MIN_FILES_PER_WORKER", 1)
    convert([*arguments, "--workers=2"], tmp_path / "two.zip")
    assert calls == [2] and (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def killed_after(count: int, arguments: list[str], dest: Path) -> None:
    """Convert in a process that `kill -9` ends when it begins with file number `count`."""
    child = os.fork()
    if child == 0:
        plain, begun = conversion.convert_file, []

        def convert_file(file, recipe):
            begun.append(file.name)
            if len(begun) > count:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(file, recipe)

        conversion.convert_file = convert_file
        partial_zip.CHECKPOINT_SEC = 0.0
        with contextlib.suppress(BaseException):  # nothing of pytest may go on in this process
            invoke(dataset_tool.main, *arguments, "--dest", dest)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_started_again_gives_the_same_bytes(name, tmp_path):
    arguments = build(name, tmp_path / "in", broken=True)
    (tmp_path / "out").mkdir()
    killed_after(2, [*arguments, "--channels=rgb"], tmp_path / "out" / "o.zip")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".o.zip.journal", ".o.zip.partial"]
    convert([*arguments, "--channels=rgb"], tmp_path / "whole.zip")
    said = convert([*arguments, "--channels=rgb"], tmp_path / "out" / "o.zip")
    assert "Going on: 2 of " in said
    assert (tmp_path / "out" / "o.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["o.convert-report.json", "o.zip"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_decides_the_source_hash(name, tmp_path):
    convert(build(name, tmp_path / "a"), tmp_path / "a.zip")
    convert(build(name, tmp_path / "b"), tmp_path / "b.zip")
    convert(build(name, tmp_path / "c", broken=True), tmp_path / "c.zip")
    a, b, c = (content(tmp_path / f"{letter}.zip")["source_hash"] for letter in "abc")
    assert a == b and len(a) == 64 and (a != c or name == "font")  # a font's broken emoji were never drawn


@pytest.mark.parametrize("name", sorted(NAMES))
def test_format_asked_for_by_name_refuses_a_plain_folder(name, tmp_path, refused):
    (tmp_path / "plain").mkdir()
    error = refused(
        dataset_tool.main, "convert", "--source", tmp_path / "plain", "--dest", tmp_path / "o.zip", "--format", name
    )
    assert "expected" in error or "holds no images" in error or "needs --list" in error or "has no images/" in error
    assert not list(tmp_path.glob("*o.zip*"))


def test_typos_and_misplaced_options(tmp_path, refused):
    arguments = [*build("folder", tmp_path / "in"), "--dest", tmp_path / "o.zip"]
    assert "Did you mean 'imagenet'?" in refused(dataset_tool.main, *arguments, "--format=imagnet")
    error = refused(dataset_tool.main, *arguments, "--objects=3-8")
    assert "--objects counts with the formats coco, but the source is read as folder" in error
    assert "'8-3'; expected the fewest" in refused(dataset_tool.main, *arguments, "--objects=8-3")
    assert "--split counts with" in refused(dataset_tool.main, *arguments, "--split=train")
    assert not (tmp_path / "o.zip").exists()


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("imagenet", "train, val"),
        ("imagenet-lt", "train"),
        ("coco", "train"),
        ("lsun", "train"),
        ("cifar", "test, train"),
        ("mnist", "train"),
        ("parquet", "train"),
        ("cityscapes", "train"),
    ],
)
def test_wrong_split_is_answered_with_those_there(name, there, tmp_path, refused):
    arguments = [*build(name, tmp_path / "in"), "--dest", tmp_path / "o.zip"]
    error = refused(dataset_tool.main, *arguments, "--split=tran")
    assert f"--split=tran: {arguments[2]} has no such split; there are: {there}. Did you mean 'train'?" in error


@pytest.mark.parametrize(("name", "package"), [("lsun", "lmdb"), ("parquet", "pyarrow")])
def test_missing_package_is_one_line(name, package, tmp_path, refused, monkeypatch):
    arguments = [*build(name, tmp_path / "in"), "--dest", tmp_path / "o.zip"]
    for module in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    error = refused(dataset_tool.main, *arguments)
    assert f"needs the package {package}, which is not installed: pip install {package}" in error
    assert not list(tmp_path.glob("*o.zip*"))


def test_files_are_small_to_send(tmp_path):
    for name in NAMES:
        arguments = build(name, tmp_path / name)
        emoji_list = tmp_path / name / "emoji-test.txt"
        options = SourceOptions(emoji_list=emoji_list if name == "font" else None)
        source, _ = open_format(Path(arguments[2]), "auto", options)
        for file in source.files:
            assert pickle.loads(pickle.dumps(file)) == file and len(pickle.dumps(file)) < 4000
