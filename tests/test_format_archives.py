"""Formats that are archives or have to be drawn: splits, names, and what a damaged or hostile one does."""

import contextlib
import gzip
import io
import json
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import invoke
from format_samples import (
    EMOJI_LIST,
    MORE_EMOJI,
    build_cifar,
    build_lsun,
    build_mnist,
    cifar_batch,
    encoded,
    idx,
    python2_pickle,
    write_cifar,
    write_font,
    write_parquet,
)
from PIL import Image

import dataset_tool
from training.formats import SourceOptions, lsun, open_format, parquet


def convert(source: Path, *options: object) -> dict:
    """Convert at 32 px; returns dataset.json, with what was said under 'said' and the arrays under 'pixels'."""
    dest = source.parent / "o.zip"
    arguments = ["convert", "--source", source, "--dest", dest, "--resolution=32", "--workers=1", "--overwrite"]
    result = invoke(dataset_tool.main, *map(str, [*arguments, *options]))
    assert result.exit_code == 0, result.output
    with zipfile.ZipFile(dest) as archive:
        pixels = [np.asarray(Image.open(archive.open(n))) for n in archive.namelist() if n.endswith(".png")]
        return json.loads(archive.read("dataset.json")) | {"said": result.stdout, "pixels": pixels}


@pytest.fixture
def refusal(refused, tmp_path):
    def run(source: Path, *options: object) -> str:
        arguments = ["convert", "--source", source, "--dest", tmp_path / "r.zip", "--resolution=32"]
        error = refused(dataset_tool.main, *map(str, [*arguments, *options]))
        assert not (tmp_path / "r.zip").exists()
        return error

    return run


# -- CIFAR


def test_cifar_pixels_and_test_split(tmp_path):
    path = build_cifar(tmp_path, broken=False)
    found = convert(path, "--split=test")
    rows = np.random.default_rng(3).integers(0, 256, (1, 3072), dtype=np.uint8)  # red, green, blue planes of 32 x 32
    assert np.array_equal(found["pixels"][0], rows[0].reshape(3, 32, 32).transpose(1, 2, 0))
    assert found["labels"] == [["00000/img00000000.png", 0]] and found["num_classes"] == 3


def test_cifar_100_keeps_the_superclass_and_may_be_unpacked(tmp_path):
    files = {
        "meta": python2_pickle(
            {b"fine_label_names": [b"apple", b"beaver"], b"coarse_label_names": [b"fruit", b"fish"]}
        ),
        "train": cifar_batch({"fine_labels": [1, 0], "coarse_labels": [1, 0]}),
        "test": cifar_batch({"fine_labels": [0], "coarse_labels": [0]}),
    }
    path = write_cifar(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", files)
    found = convert(path)
    assert found["class_names"] == ["apple", "beaver"] and [n for _, n in found["labels"]] == [1, 0]
    assert [row["superclass"] for row in found["attributes"].values()] == ["fish", "fruit"]
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "in", filter="data")
    for folder in (tmp_path / "in", tmp_path / "in" / "cifar-100-python"):
        assert convert(folder, "--labels=superclass")["class_names"] == ["fish", "fruit"]


def test_cifar_packed_again_by_python_3(tmp_path):
    (tmp_path / "in").mkdir()
    data = np.zeros((1, 3072), dtype=np.uint8)
    for protocol in (2, 5):
        content = {"data": data, "labels": [1], "filenames": ["a.png"]}
        (tmp_path / "in" / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
        (tmp_path / "in" / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"x", b"y"]}, protocol=protocol))
        found = convert(tmp_path / "in")
        assert found["labels"] == [["00000/img00000000.png", 1]] and found["split"] == "test"  # the only one there


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_pickle_is_executed(tmp_path, refusal):
    files = {
        "batches.meta": python2_pickle({b"label_names": [b"x"]}),
        "data_batch_1": pickle.dumps(Payload(tmp_path / "executed")),
    }
    path = write_cifar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    error = refusal(path)
    assert "refused: it asks for posix.system, which no batch of CIFAR needs" in error
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({b"data": np.zeros((2, 100), np.uint8), b"labels": [0, 0]}, "not uint8 [N, 3072]"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "do not fit"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [7]}, "do not fit"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"cat"]}, "its labels do not fit"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": 3}, "its labels do not fit"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0], b"filenames": 3}, "its filenames do not fit"),
        ({b"labels": [7]}, "has no 'data'"),
        ([1, 2], "can't be read"),
    ],
)
def test_odd_cifar_batches_are_refused(content, said, tmp_path, refusal):
    files = {"batches.meta": python2_pickle({b"label_names": [b"x"]}), "data_batch_1": python2_pickle(content)}
    assert said in refusal(write_cifar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files))


def test_archive_cut_short_gives_what_came_through(tmp_path, refusal):
    path = build_cifar(tmp_path, broken=False)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = convert(path)
    assert "data_batch_1/00000_tabby_s_10.png" in found["sources"].values()
    came = {name.partition("/")[0] for name in found["sources"].values()}
    said = f"the archive ends early: {5 - len(came)} of 5 batches are missing; get it again"
    assert found["refused"] == {f"data_batch_{i}": said for i in range(1, 6) if f"data_batch_{i}" not in came}
    path.write_bytes(content[:30])
    assert "can't be read as a tar archive" in refusal(path) or "neither batches.meta nor meta" in refusal(path)


def test_archive_cut_before_train_does_not_pass_for_the_test_split(tmp_path, refusal):
    files = {
        "batches.meta": python2_pickle({b"label_names": [b"x"]}),
        "test_batch": cifar_batch({"labels": [0]}),
        "data_batch_1": cifar_batch({"labels": [0] * 9}),
    }
    path = write_cifar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    path.write_bytes(path.read_bytes()[:-9000])
    assert "the archive ends early: 5 of 5 batches are missing" in refusal(path)


# -- MNIST


def test_mnist_splits_spellings_and_single_files(tmp_path, refusal):
    (tmp_path / "in" / "MNIST" / "raw").mkdir(parents=True)
    folder = tmp_path / "in" / "MNIST" / "raw"
    values = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    (folder / "t10k-images.idx3-ubyte").write_bytes(idx(values))
    (folder / "t10k-labels.idx1-ubyte").write_bytes(idx(np.array([7, 2], dtype=np.uint8)))
    found = convert(tmp_path / "in")
    assert found["split"] == "test" and [n for _, n in found["labels"]] == [7, 2] and found["channels"] == 1
    padded = convert(tmp_path / "in", "--transform=none", "--channels=grey")
    assert padded["source_sizes"]["00000/img00000000.png"] == [28, 28]
    assert convert(folder / "t10k-images.idx3-ubyte")["labels"] == found["labels"]
    assert "--split=train: t10k-images.idx3-ubyte is the split test" in refusal(
        folder / "t10k-images.idx3-ubyte", "--split=train"
    )
    (folder / "t10k-labels.idx1-ubyte").write_bytes(idx(np.array([7], dtype=np.uint8)))
    assert "has 1 labels, t10k-images.idx3-ubyte says 2 images" in refusal(tmp_path / "in")
    (folder / "t10k-labels.idx1-ubyte").unlink()
    assert "has no t10k-labels-idx1-ubyte[.gz] beside the images" in refusal(tmp_path / "in")


def test_mnist_pixels_and_fashion_names(tmp_path, refusal):
    (tmp_path / "FashionMNIST").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (1, 32, 32), dtype=np.uint8)
    path = tmp_path / "FashionMNIST" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(values)))
    (tmp_path / "FashionMNIST" / "train-labels-idx1-ubyte").write_bytes(idx(np.array([9], dtype=np.uint8)))
    found = convert(tmp_path / "FashionMNIST")
    assert np.array_equal(found["pixels"][0], values[0]) and found["class_names"][9] == "Ankle boot"
    path.write_bytes(b"no gzip at all")
    assert "can't be read as an idx file" in refusal(tmp_path / "FashionMNIST")
    path.write_bytes(gzip.compress(idx(values.astype(np.uint8)[0])))
    assert "is no idx file of 3 dimensions" in refusal(tmp_path / "FashionMNIST")


def test_mnist_unpacks_no_more_than_its_header_says(tmp_path, refusal):
    build_mnist(tmp_path, broken=False)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    pixels = convert(tmp_path)["pixels"]
    path.write_bytes(gzip.compress(whole + bytes(200 << 20), compresslevel=1))
    tracemalloc.start()
    again = convert(tmp_path)["pixels"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20 and np.array_equal(again, pixels)
    path.write_bytes(gzip.compress(whole[:4] + b"\x7f" * 12))
    assert "values, at most 1,073,741,824 are read" in refusal(tmp_path)


def test_mnist_cut_short_names_the_missing_images(tmp_path):
    found = convert(build_mnist(tmp_path, broken=True))
    assert list(found["sources"].values()) == ["train/00000", "train/00001", "train/00002"]
    assert found["refused"] == {"train/00003": "train-images-idx3-ubyte.gz ends before it; get the file again"}


# -- LSUN


def test_one_lmdb_has_no_labels(tmp_path):
    build_lsun(tmp_path, broken=False)
    found = convert(tmp_path / "bedroom_train_lmdb")
    assert list(found["sources"].values()) == ["00a", "00b", "00c"] and found["labels"] is None
    assert found["split"] == "train"
    assert found["pixels"][0].shape == (32, 32, 3)


def test_lmdb_is_opened_again_behind_a_fork(tmp_path):
    build_lsun(tmp_path, broken=False)
    source, _ = open_format(tmp_path, "auto", SourceOptions())
    expected = [file.read() for file in source.files]  # open in this process now
    child = os.fork()
    if child == 0:
        same = False
        with contextlib.suppress(Exception):
            same = [file.read() for file in source.files] == expected
            mine = [opened for folder, opened in lsun._opened.items() if folder.startswith(str(tmp_path))]
            same = same and len(mine) == 2 and all(process == os.getpid() for process, _ in mine)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [file.read() for file in source.files] == expected  # and the parent's is still whole


def test_lmdb_that_is_none(tmp_path, refusal):
    (tmp_path / "x_lmdb").mkdir()
    (tmp_path / "x_lmdb" / "data.mdb").write_bytes(b"not an lmdb" * 1000)
    assert "can't be opened as an lmdb" in refusal(tmp_path / "x_lmdb")


# -- Parquet


def test_parquet_without_metadata_and_with_words_as_labels(tmp_path):
    rows = {"png": [encoded(0), encoded(1), encoded(2)], "label": ["dog", "cat", "dog"], "year": [1, 2, None]}
    found = convert(write_parquet(tmp_path / "x.parquet", rows))
    assert found["class_names"] == ["cat", "dog"] and [n for _, n in found["labels"]] == [1, 0, 1]
    assert [row.get("year") for row in found["attributes"].values()] == [1, 2]
    assert convert(tmp_path / "x.parquet", "--only=year=2")["class_counts"] == [1, 0]


def test_parquet_splits_by_name_or_folder(tmp_path):
    rows = {"image": [{"bytes": encoded(0), "path": None}], "label": [0]}
    write_parquet(tmp_path / "in" / "train" / "0.parquet", rows)
    write_parquet(tmp_path / "in" / "validation-00000-of-00001.parquet", {"image": rows["image"] * 2, "label": [0, 1]})
    assert len(convert(tmp_path / "in")["sources"]) == 1
    found = convert(tmp_path / "in", "--split=validation")
    assert len(found["sources"]) == 2 and found["split"] == "validation" and found["class_names"] is None


def test_parquet_rows_and_files_that_cannot_be_used(tmp_path, refusal):
    images = [{"bytes": encoded(0), "path": "a"}, None, {"bytes": None, "path": "b.png"}]
    write_parquet(tmp_path / "in" / "a.parquet", {"image": images})
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 no PAR1")
    found = convert(tmp_path / "in")
    assert found["refused"].pop("b.parquet").startswith("can't be read as parquet")
    assert found["refused"] == {
        "a/0000001": "the row holds no image (null)",
        "a/0000002": "the row holds only a path, b.png; embed the images when saving",
    }
    assert found["labels"] is None and "there is no column label" in found["said"]
    write_parquet(tmp_path / "text.parquet", {"text": ["a"], "label": [0]})
    assert "has no column of images" in refusal(tmp_path / "text.parquet")
    write_parquet(tmp_path / "many.parquet", {"image": images[:1], "label": [3]}, ["x", "y"])
    assert "its column label goes from 3 to 3, expected 0 to 1" in refusal(tmp_path / "many.parquet")


def test_parquet_is_read_forward_and_in_parts(tmp_path, monkeypatch):
    """Rows in order open a row group once and hold a few of its rows, however large it is."""
    rows = {"image": [encoded(i) for i in range(20)]}
    path = write_parquet(tmp_path / "x.parquet", rows, group=10)
    opened = []
    plain = parquet._OpenGroup.__init__

    def count(self, file):
        opened.append(file.row_group)
        plain(self, file)

    monkeypatch.setattr(parquet._OpenGroup, "__init__", count)
    monkeypatch.setattr(parquet, "ROWS_PER_READ", 3)
    parquet._open_groups.clear()
    source, _ = open_format(path, "auto", SourceOptions())
    for file, expected in zip(source.files, rows["image"], strict=True):
        assert file.read() == expected
        assert parquet._open_groups[0].batch.num_rows <= 3
    assert opened == [0, 1]
    assert source.files[4].read() == rows["image"][4] and opened == [0, 1, 0]  # back again
    assert source.files[1].read() == rows["image"][1] and opened == [0, 1, 0, 0]


# -- Fonts


@pytest.fixture
def boxes(tmp_path) -> tuple[Path, str]:
    (tmp_path / "list.txt").write_text(EMOJI_LIST + MORE_EMOJI)
    return write_font(tmp_path / "Boxes.ttf"), f"--emoji-list={tmp_path / 'list.txt'}"


def test_only_emoji_that_are_one_glyph_are_drawn(boxes):
    found = convert(*boxes)
    assert found["refused"] == {
        "1f468-200d-1f469.png": "two that are not joined: the font draws it as 2 glyphs, not one",
        "1f6fc.png": "roller skate: the font has no glyph for U+1F6FC (ROLLER SKATE)",
        "1f3f4-e0067-e007f.png": "flag that is not spelt: the font draws it as its first character alone",
    }
    thumb = next(row for name, row in found["attributes"].items() if found["sources"][name] == "1f44d-1f3fd.png")
    assert thumb == {
        "group": "People & Body",
        "subgroup": "hand-fingers-closed",
        "base": "1F44D",
        "codepoints": "1F44D 1F3FD",
        "short_name": "thumbs up: medium skin tone",
    }
    smile = next(row for row in found["attributes"].values() if row["short_name"] == "smiling face")
    assert smile["base"] == "263A" and smile["codepoints"] == "263A FE0F"
    assert found["license"] == "OFL-1.1" and "font Boxes. Copyright X. This Font Software" in found["attribution"]


def test_drawings_are_centred_on_the_background(boxes):
    found = convert(*boxes, "--background=#ffff00", "--resize-filter=box")
    for array in found["pixels"]:
        assert array.shape == (32, 32, 3) and array[0, 0].tolist() == [255, 255, 0]
        ink = array[..., 0] < 128
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        for marked in (rows, columns):
            assert len(marked) and abs(marked[0] - (31 - marked[-1])) <= 1
    assert len({array.tobytes() for array in found["pixels"]}) == 4
    dark = convert(*boxes, "--background=black")["pixels"][0]
    assert dark[0, 0].max() == 0 and dark.max() == 255  # ink that shows


def test_subgroups_can_be_held_out(boxes):
    found = convert(*boxes, "--labels=subgroup", "--skip=subgroup=face-smiling")
    assert found["class_names"] == ["face-smiling", "hand-fingers-closed"] and found["class_counts"] == [0, 2]


def test_font_without_its_list_or_of_letters(boxes, tmp_path, refusal, monkeypatch):
    font, emoji_list = boxes
    monkeypatch.setattr("training.formats.font.DEFAULT_LIST", tmp_path / "nowhere.txt")
    assert "nowhere.txt is not there; on Debian or Ubuntu: apt install unicode-data" in refusal(font)
    assert "can't be read" in refusal(font, f"--emoji-list={tmp_path / 'none'}")
    (tmp_path / "words.txt").write_text("hello\n")
    assert "lists no fully-qualified emoji" in refusal(font, f"--emoji-list={tmp_path / 'words.txt'}")
    (tmp_path / "words.txt").write_text("1F6FC ; fully-qualified # x E13.0 roller skate\n")
    assert "has none of the 1 emoji" in refusal(font, f"--emoji-list={tmp_path / 'words.txt'}")
    (tmp_path / "bad.ttf").write_bytes(font.read_bytes()[:100])
    assert "can't be opened as a font" in refusal(tmp_path / "bad.ttf", emoji_list)
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    assert "built without raqm" in refusal(font, emoji_list)


NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
UNICODE_DATA = Path("/usr/share/unicode/emoji/emoji-test.txt")


@pytest.mark.slow
@pytest.mark.skipif(not (NOTO.exists() and UNICODE_DATA.exists()), reason="needs fonts-noto-color-emoji, unicode-data")
def test_noto_color_emoji(tmp_path):
    """Only some are drawn: all 3,655 take seconds."""
    source, said = open_format(NOTO, "auto", SourceOptions())
    assert "Recognised as font" in said and source.described["license"] == "OFL-1.1"
    if "Version: 15.0" in UNICODE_DATA.read_text(encoding="utf-8")[:600]:
        groups = [row["group"] for row in source.attributes.values()]
        assert len(source.files) == 3655 and groups.count("People & Body") == 2148 and groups.count("Activities") == 85
        assert len({row["subgroup"] for row in source.attributes.values()}) == 99
    by_name = {file.name: file for file in source.files}
    skin = Image.open(io.BytesIO(by_name["1f44d-1f3fd.png"].read()))
    assert skin.size == (136, 136) and len(skin.getcolors(1 << 20) or []) > 10  # colours, not an outline
