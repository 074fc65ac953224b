"""dataset_tool.py: what users feed it, what comes out, and what it says."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import pytest
from click.testing import CliRunner
from PIL import Image, features

import dataset_tool
from torch_utils import images
from training import conversion, image_source

ROOT = Path(dataset_tool.__file__).parent
RNG = np.random.default_rng(0)


def picture(width: int = 16, height: int = 16, channels: int = 3) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, channels)[: 2 if channels == 1 else 3], dtype=np.uint8))


def save(path: Path, image: Image.Image | None = None, **options) -> Image.Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image or picture()
    image.save(path, **options)
    return image


def run(*args) -> tuple[int, str, str]:
    result = CliRunner().invoke(dataset_tool.main, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def convert(source: Path, dest: Path, *options) -> str:
    """Convert; returns what was said on standard output."""
    code, stdout, stderr = run("convert", "--source", source, "--dest", dest, "--workers", 1, *options)
    assert code == 0, stderr
    return stdout


@pytest.fixture
def refusal(refused):
    """Run a command that must fail: exit code 2 and one line, which is returned."""
    return partial(refused, dataset_tool.main)


def metadata(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


def pixels(path: Path) -> list[np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        return [np.asarray(Image.open(archive.open(n))) for n in archive.namelist() if n.endswith(".png")]


def make_zip(path: Path, folder: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


# -- The zip


def test_round_trip_of_names_pixels_and_order(tmp_path):
    originals = {name: save(tmp_path / "in" / name) for name in ("b.png", "a.bmp", "sub/ü ☃.PNG", "sub/deeper/c.TIFF")}
    convert(tmp_path / "in", tmp_path / "new" / "out.zip")
    content = metadata(tmp_path / "new" / "out.zip")
    names = [f"00000/img{i:08d}.png" for i in range(4)]
    with zipfile.ZipFile(tmp_path / "new" / "out.zip") as archive:
        assert archive.namelist() == [*names, "dataset.json"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # the same bytes tomorrow
    assert list(content["sources"].values()) == sorted(originals)
    for name, array in zip(names, pixels(tmp_path / "new" / "out.zip"), strict=True):
        assert np.array_equal(array, np.asarray(originals[content["sources"][name]]))
    expected = {"resolution": 16, "channels": 3, "transform": "center-crop", "filter": "lanczos", "labels": None}
    assert expected.items() <= content.items() and content["num_classes"] == 0 and content["refused"] == {}


def test_members_are_numbered_over_folders_of_a_thousand():
    writer = dataset_tool.DatasetWriter(io.BytesIO())
    names = [writer.add(b"") for _ in range(1001)]
    assert names[999] == "00000/img00000999.png" and names[1000] == "00001/img00001000.png"


def test_same_bytes_whatever_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "MIN_FILES_PER_WORKER", 1)
    for i in range(30):
        save(tmp_path / "in" / f"{i}.png", picture(20, 16, channels=1 if i < 20 else 3))
    (tmp_path / "in" / "3.png").write_bytes(b"broken")
    make_zip(tmp_path / "in.zip", tmp_path / "in")
    made = set()
    for number, (source, workers) in enumerate([("in", 1), ("in.zip", 2)]):
        dest = tmp_path / f"{number}.zip"
        code, _, _ = run("convert", "--source", tmp_path / source, "--dest", dest, "--workers", workers)
        assert code == 0
        made.add(dest.read_bytes())
    assert len(made) == 1
    assert metadata(tmp_path / "0.zip")["channels"] == 3 and len(pixels(tmp_path / "0.zip")) == 29


# -- What folders hold


@pytest.fixture
def motley(tmp_path) -> Path:
    """A folder as users have them."""
    folder = tmp_path / "motley"
    save(folder / "grey.png", picture(channels=1))
    save(folder / "rgba.png", picture(channels=4))
    save(folder / "cmyk.jpg", picture(channels=3).convert("CMYK"))
    save(folder / "16bit.png", Image.fromarray(np.full((16, 16), 32768, np.uint16)))
    save(folder / "palette.gif", picture().quantize(8), transparency=0)
    save(folder / "la.png", picture(channels=1).convert("LA"))
    save(folder / "Großbuchstaben.JPEG", picture(40, 30))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    save(folder / "nested" / "phone.jpg", picture(32, 16), exif=rotated)
    jpeg = io.BytesIO()
    picture(64, 64).save(jpeg, "JPEG")
    (folder / "truncated.jpg").write_bytes(jpeg.getvalue()[:-300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.png").write_bytes(b"I am not an image")
    (folder / "gone.png").symlink_to("nowhere.png")
    for name in ("notes.txt", "README", ".hidden.png", ".git/x.png", "__MACOSX/._grey.png", "Thumbs.db", "x.heic"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"?")
    return folder


def test_motley_folder(motley, tmp_path):
    code, stdout, stderr = run("convert", "--source", motley, "--dest", tmp_path / "o.zip", "--resolution", "16x16")
    assert code == 0
    content = metadata(tmp_path / "o.zip")
    good = {"grey.png", "rgba.png", "cmyk.jpg", "16bit.png", "palette.gif", "la.png", "Großbuchstaben.JPEG"}
    assert set(content["sources"].values()) == good | {"nested/phone.jpg"}
    assert {name: reason.split(" (")[0] for name, reason in content["refused"].items()} == {
        "truncated.jpg": "damaged or truncated",
        "empty.png": "the file is empty",
        "words.png": "not an image in a format that is read here",
        "gone.png": "no such file, or a broken link",
    }
    for name, reason in content["refused"].items():
        assert f"Refused {name}: {reason}\n" in stderr
    assert "Skipped 7 other files (hidden 3, .db 1, .heic 1, .txt 1, no ending 1)." in stdout
    assert "8 images, 16x16, RGB, 0 classes; 4 refused, 0 enlarged" in stdout
    assert all(array.shape == (16, 16, 3) for array in pixels(tmp_path / "o.zip"))
    by_source = dict(zip(content["sources"].values(), pixels(tmp_path / "o.zip"), strict=True))
    assert (by_source["16bit.png"] == 128).all()
    assert content["source_sizes"]["00000/img00000000.png"] == [16, 16]
    phone = next(name for name, source in content["sources"].items() if source == "nested/phone.jpg")
    assert content["source_sizes"][phone] == [16, 32]  # upright


def test_exif_rotation_turns_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    stored = save(tmp_path / "in" / "a.png", exif=exif)
    convert(tmp_path / "in", tmp_path / "o.zip")
    assert np.array_equal(pixels(tmp_path / "o.zip")[0], np.rot90(np.asarray(stored)))


def test_transform_filter_and_colors_reach_the_pixels(tmp_path):
    image = save(tmp_path / "in" / "a.png", picture(32, 16))
    options = {
        "crop": ["--resize-filter=box"],
        "pad": ["--transform=pad", "--pad-color=#102030"],
        "fit": ["--transform=fit", "--resize-filter=bilinear"],
    }
    for name, given in options.items():
        convert(tmp_path / "in", tmp_path / f"{name}.zip", "--resolution=8", *given)
    box = Image.Resampling.BOX
    assert np.array_equal(pixels(tmp_path / "crop.zip")[0], np.asarray(image.crop((8, 0, 24, 16)).resize((8, 8), box)))
    padded = pixels(tmp_path / "pad.zip")[0]
    assert padded[0, 0].tolist() == padded[7, 7].tolist() == [16, 32, 48]
    assert np.array_equal(padded[2:6], np.asarray(image.resize((8, 4), Image.Resampling.LANCZOS)))
    fitted = image.resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels(tmp_path / "fit.zip")[0], np.asarray(fitted))
    assert metadata(tmp_path / "pad.zip")["pad_color"] == [16, 32, 48]
    assert metadata(tmp_path / "fit.zip")["filter"] == "bilinear"


def test_background_shows_through(tmp_path):
    save(tmp_path / "in" / "a.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    convert(tmp_path / "in", tmp_path / "o.zip", "--background=lime")
    assert (pixels(tmp_path / "o.zip")[0] == [0, 255, 0]).all()


def test_channels_auto_is_grey_only_if_all_images_are(tmp_path):
    grey = picture(channels=1)
    save(tmp_path / "in" / "a.png", grey)
    save(tmp_path / "in" / "b.png", grey.convert("RGB"))
    convert(tmp_path / "in", tmp_path / "grey.zip")
    assert metadata(tmp_path / "grey.zip")["channels"] == 1
    assert all(np.array_equal(array, np.asarray(grey)) for array in pixels(tmp_path / "grey.zip"))

    convert(tmp_path / "in", tmp_path / "rgb.zip", "--channels=rgb")
    assert metadata(tmp_path / "rgb.zip")["channels"] == 3 and pixels(tmp_path / "rgb.zip")[0].shape == (16, 16, 3)

    last = save(tmp_path / "in" / "c.png")  # colour shows after two grey images were written
    convert(tmp_path / "in", tmp_path / "mixed.zip")
    first, second, third = pixels(tmp_path / "mixed.zip")
    assert metadata(tmp_path / "mixed.zip")["channels"] == 3 and len(metadata(tmp_path / "mixed.zip")["sources"]) == 3
    assert np.array_equal(first, np.dstack([grey] * 3)) and np.array_equal(first, second)
    assert np.array_equal(third, np.asarray(last))

    convert(tmp_path / "in", tmp_path / "forced.zip", "--channels=grey")
    assert np.array_equal(pixels(tmp_path / "forced.zip")[2], np.asarray(last.convert("L")))


def test_max_images_spreads_over_the_classes(tmp_path):
    for i in range(12):
        save(tmp_path / "in" / "abc"[i // 4] / f"{i:02d}.png")
    convert(tmp_path / "in", tmp_path / "o.zip", "--max-images=3")
    content = metadata(tmp_path / "o.zip")
    assert [label for _, label in content["labels"]] == [0, 1, 2] and content["num_classes"] == 3
    convert(tmp_path / "in", tmp_path / "one.zip", "--max-images=1")
    assert metadata(tmp_path / "one.zip")["num_classes"] == 3  # the classes do not change with the number of images


def test_links_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "elsewhere" / "a.png")
    save(tmp_path / "in" / "x" / "b.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "x" / "up").symlink_to(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "o.zip")
    assert list(metadata(tmp_path / "o.zip")["sources"].values()) == ["linked/a.png", "x/b.png"]


def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"ab\xe9\n.png")
    save(tmp_path / "in" / name)
    (tmp_path / "in" / f"bad {name}").write_bytes(b"")
    code, _, stderr = run("convert", "--source", tmp_path / "in", "--dest", tmp_path / "o.zip")
    assert code == 0 and list(metadata(tmp_path / "o.zip")["sources"].values()) == [name]
    assert stderr == "Refused bad ab\\udce9\\n.png: the file is empty (0 bytes)\n"


def test_many_refusals_are_counted_on_the_screen_and_all_in_the_json(tmp_path):
    save(tmp_path / "in" / "good.png")
    for i in range(30):
        (tmp_path / "in" / f"bad{i}.png").write_bytes(b"")
    code, _, stderr = run("convert", "--source", tmp_path / "in", "--dest", tmp_path / "o.zip")
    assert code == 0 and stderr.count("Refused bad") == 20 and "Refused 10 more" in stderr
    assert len(metadata(tmp_path / "o.zip")["refused"]) == 30


# -- Labels


def labels_of(tmp_path: Path, names: list[str], *options) -> tuple[list[int] | None, str]:
    for name in names:
        save(tmp_path / "in" / name)
    stdout = convert(tmp_path / "in", tmp_path / "o.zip", "--overwrite", *options)
    table = metadata(tmp_path / "o.zip")["labels"]
    sentence = next(line for line in stdout.splitlines() if line.startswith("Labels: "))
    return table and [label for _, label in table], sentence


def test_top_level_folders_are_classes(tmp_path):
    names = ["dog/1.png", "cat/1.png", "cat/persian/2.png", "emu/young/3.png"]
    labels, sentence = labels_of(tmp_path, names)
    assert labels == [0, 0, 1, 2]
    assert sentence == "Labels: 3 classes from the top-level folders: cat, dog, emu."
    content = metadata(tmp_path / "o.zip")
    assert content["num_classes"] == 3 and content["class_names"] == ["cat", "dog", "emu"]
    assert [name for name, _ in content["labels"]] == list(content["sources"])
    assert labels_of(tmp_path, names, "--labels=none") == (None, "Labels: none (--labels=none).")
    assert metadata(tmp_path / "o.zip")["num_classes"] == 0


def test_labels_belong_to_the_right_images_when_some_are_refused(tmp_path):
    save(tmp_path / "in" / "b" / "1.png")
    (tmp_path / "in" / "a").mkdir()
    (tmp_path / "in" / "a" / "0.png").write_bytes(b"")
    convert(tmp_path / "in", tmp_path / "o.zip")
    assert metadata(tmp_path / "o.zip")["labels"] == [["00000/img00000000.png", 1]]
    assert metadata(tmp_path / "o.zip")["num_classes"] == 2


def test_folders_that_all_images_share_are_passed_over(tmp_path):
    labels, _ = labels_of(tmp_path, ["data/train/cat/1.png", "data/train/dog/1.png"])
    assert labels == [0, 1] and metadata(tmp_path / "o.zip")["class_names"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.png", "b.png"], "the images are not sorted into sub-folders"),
        (["cat/a.png", "cat/b.png"], "the images are not sorted into sub-folders"),
        (["cat/a.png", "dog/b.png", "loose.png"], "loose.png is in none of the folders cat, dog"),
    ],
)
def test_no_labels_where_folders_are_not_classes(tmp_path, names, reason, refusal):
    assert labels_of(tmp_path, names) == (None, f"Labels: none, because {reason}.")
    source = ["convert", "--source", tmp_path / "in", "--dest", tmp_path / "p.zip"]
    assert f"--labels=folders: {reason}; expected" in refusal(*source, "--labels=folders")


@pytest.mark.parametrize(
    ("names", "reason"),
    [(["00000/a.png", "01000/b.png"], "look like numbered parts"), (["train/a.png", "Val/b.png"], "look like splits")],
)
def test_parts_and_splits_become_classes_only_on_request(tmp_path, names, reason):
    labels, sentence = labels_of(tmp_path, names)
    assert labels is None and reason in sentence and "--labels=folders" in sentence
    assert labels_of(tmp_path, names, "--labels=folders")[0] is not None


def write_json(tmp_path: Path, **content) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def test_labels_from_dataset_json_win_over_folders(tmp_path):
    table = [["dog/1.png", 4], ["cat/1.png", 2], ["not/there.png", 0]]
    write_json(tmp_path, labels=table, num_classes=7, class_names=list("abcdefg"), attribution="Jane", license="CC0")
    labels, sentence = labels_of(tmp_path, ["cat/1.png", "dog/1.png"])
    assert labels == [2, 4] and "7 classes from the dataset.json" in sentence
    content = metadata(tmp_path / "o.zip")
    assert content["num_classes"] == 7 and content["class_names"] == list("abcdefg")
    assert content["attribution"] == "Jane" and content["license"] == "CC0"
    assert labels_of(tmp_path, [], "--labels=folders")[0] == [0, 1]
    write_json(tmp_path, labels=None)
    assert labels_of(tmp_path, [])[0] is None


def test_one_hot_labels_become_class_numbers(tmp_path):
    write_json(tmp_path, labels=[["a.png", [0, 1, 0, 0]], ["b.png", [1.0, 0, 0, 0]]])
    assert labels_of(tmp_path, ["a.png", "b.png"])[0] == [1, 0]
    assert metadata(tmp_path / "o.zip")["num_classes"] == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"labels": [["a.png", 0]]}, "no label for 1 images, first b.png"),
        ({"labels": []}, "no label for 2 images, first a.png"),
        ({"labels": [["a.png", 0], ["b.png", -1]]}, 'needs "labels"'),
        ({"labels": [["a.png", 0], ["b.png", "dog"]]}, 'needs "labels"'),
        ({"labels": [["a.png", [0.5, 0.5]], ["b.png", [0, 1]]]}, 'needs "labels"'),
        ({"labels": {"a.png": 0, "b.png": 1}}, 'needs "labels"'),
        ({"labels": 3}, 'needs "labels"'),
        ({"labels": [["a.png", 0], ["b.png", 5]], "num_classes": 3}, "num_classes=3, but its labels go to 5"),
        ({"labels": [["a.png", 0], ["b.png", 1]], "num_classes": 4 * 10**12}, "at most 1,000,000 can be used"),
        ({"labels": [["a.png", 0], ["b.png", 10**6]]}, "at most 1,000,000 can be used"),
    ],
)
def test_unusable_labels_are_refused(tmp_path, content, said, refusal):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png")
    write_json(tmp_path, **content)
    error = refusal("convert", "--source", tmp_path / "in", "--dest", tmp_path / "o.zip")
    assert said in error and "--labels=none" in error and not (tmp_path / "o.zip").exists()


def test_damaged_dataset_json_is_refused(tmp_path, refusal):
    save(tmp_path / "in" / "a.png")
    for text, said in (
        ("{", "can't be read"),
        ("[]", "is a list"),
        ("", "can't be read"),
        ("[" * 200_000, "can't be read"),
    ):
        (tmp_path / "in" / "dataset.json").write_text(text)
        assert said in refusal("convert", "--source", tmp_path / "in", "--dest", tmp_path / "o.zip")


# -- Zips as sources


def test_converting_a_converted_zip_keeps_pixels_labels_and_credits(tmp_path):
    save(tmp_path / "in" / "cat" / "1.png")
    save(tmp_path / "in" / "dog" / "1.png")
    convert(tmp_path / "in", tmp_path / "1.zip")
    convert(tmp_path / "1.zip", tmp_path / "2.zip")
    first, second = metadata(tmp_path / "1.zip"), metadata(tmp_path / "2.zip")
    assert all(
        np.array_equal(a, b) for a, b in zip(pixels(tmp_path / "1.zip"), pixels(tmp_path / "2.zip"), strict=True)
    )
    assert first["labels"] == second["labels"] and second["class_names"] == ["cat", "dog"]


def test_zip_members_that_cannot_be_read_are_refused_by_name(tmp_path):
    for name in ("good", "packed", "flipped", "secret"):
        save(tmp_path / f"{name}.png", picture(channels=1))
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        methods = {"good": zipfile.ZIP_DEFLATED, "packed": zipfile.ZIP_LZMA, "flipped": 0, "secret": 0}
        for name, method in methods.items():
            archive.write(tmp_path / f"{name}.png", f"f\\{name}.png", method)
        flipped = archive.getinfo("f\\flipped.png")
        archive.getinfo("f\\secret.png").flag_bits |= 1  # encrypted, as the directory of the zip has it
    data = bytearray(path.read_bytes())
    data[flipped.header_offset + 60] ^= 1
    path.write_bytes(data)
    convert(path, tmp_path / "o.zip")
    content = metadata(tmp_path / "o.zip")
    assert list(content["sources"].values()) == ["f/good.png"]
    assert {name: reason.split()[0] for name, reason in content["refused"].items()} == {
        "f/packed.png": "packed",
        "f/flipped.png": "damaged",
        "f/secret.png": "encrypted",
    }


def test_zip_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10_000_000))
    file = image_source.open_source(path).files[0]
    assert file.member is not None and len(file.read()) == 10_000_000
    lying = file._replace(member=file.member._replace(size=100))
    with pytest.raises(images.ImageRefused, match="checksum"):
        lying.read()


# -- Errors


def test_sources_that_cannot_be_converted(tmp_path, refusal):
    dest = ["--dest", tmp_path / "o.zip"]
    assert "does not exist" in refusal("convert", "--source", tmp_path / "nowhere", *dest)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refusal("convert", "--source", tmp_path / "empty", *dest)
    (tmp_path / "empty" / "IMG_1.HEIC").write_bytes(b"?")
    assert "it holds other files: .heic 1" in refusal("convert", "--source", tmp_path / "empty", *dest)
    (tmp_path / "words.zip").write_text("no zip")
    assert "neither a folder nor a zip" in refusal("convert", "--source", tmp_path / "words.zip", *dest)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    error = refusal("convert", "--source", tmp_path / "bad", *dest)
    assert "none of its 1 images can be used; the first, a.png: the file is empty" in error
    assert list(tmp_path.glob("*.zip")) == [tmp_path / "words.zip"]


def test_destinations_that_cannot_be_written(tmp_path, refusal):
    save(tmp_path / "in" / "a.png")
    source = ["convert", "--source", tmp_path / "in"]
    assert "does not end in .zip" in refusal(*source, "--dest", tmp_path / "o")
    assert "is a folder" in refusal(*source, "--dest", tmp_path / "in")
    (tmp_path / "file").write_text("")
    assert "can't be written" in refusal(*source, "--dest", tmp_path / "file" / "o.zip")
    convert(tmp_path / "in", tmp_path / "o.zip")
    before = (tmp_path / "o.zip").read_bytes()
    assert "--overwrite" in refusal(*source, "--dest", tmp_path / "o.zip")
    same = refusal("convert", "--source", tmp_path / "o.zip", "--dest", tmp_path / "o.zip", "--overwrite")
    assert "is --source itself" in same and (tmp_path / "o.zip").read_bytes() == before
    save(tmp_path / "in" / "b.png")
    convert(tmp_path / "in", tmp_path / "o.zip", "--overwrite")
    assert len(pixels(tmp_path / "o.zip")) == 2


def test_images_that_are_hardly_pictures_are_named(tmp_path):
    for name, side in (("tiny.png", 4), ("small.png", 15), ("good.png", 16)):
        save(tmp_path / "in" / name, picture(side, 2 * side))
    code, _, stderr = run("convert", "--source", tmp_path / "in", "--dest", tmp_path / "o.zip", "--resolution=128")
    assert code == 0 and "2 images are hardly pictures" in stderr and "small.png (15x30), tiny.png (4x8)" in stderr
    report = json.loads((tmp_path / "o.convert-report.json").read_text())
    assert report["coarse"] == {"small.png": [15, 30], "tiny.png": [4, 8]}


def test_summary_counts_the_classes_that_have_images(tmp_path):
    save(tmp_path / "in" / "a.png")
    write_json(tmp_path, labels=[["a.png", 2]], num_classes=9)
    assert "RGB, 9 classes, 1 with images; 0 refused" in convert(tmp_path / "in", tmp_path / "o.zip")


def test_destination_inside_the_source(tmp_path):
    save(tmp_path / "in" / "a.png")
    convert(tmp_path / "in", tmp_path / "in" / "o.zip")
    convert(tmp_path / "in", tmp_path / "in" / "o.zip", "--overwrite")
    assert list(metadata(tmp_path / "in" / "o.zip")["sources"].values()) == ["a.png"]


def test_sizes_without_resolution_must_agree(tmp_path, refusal):
    source = ["convert", "--source", tmp_path / "in", "--dest", tmp_path / "o.zip"]
    save(tmp_path / "in" / "a.png", picture(32, 40))
    convert(tmp_path / "in", tmp_path / "one.zip")
    save(tmp_path / "in" / "b.png", picture(64, 64))
    error = refusal(*source)
    assert "a.png is 32x32" in error and "b.png is 64x64" in error and "--resolution=32" in error
    convert(tmp_path / "in", tmp_path / "two.zip", "--resolution=32")
    save(tmp_path / "in" / "a.png", picture(100, 100))
    assert "a.png is 100x100" in refusal(*source) and "--resolution=64 or 128" in refusal(*source)
    assert "none of its 1 images" not in refusal(*source, "--transform=none")
    assert not (tmp_path / "o.zip").exists()


def test_transform_none_refuses_single_images(tmp_path):
    save(tmp_path / "in" / "a.png", picture(16, 16))
    save(tmp_path / "in" / "b.png", picture(20, 16))
    convert(tmp_path / "in", tmp_path / "o.zip", "--transform=none")
    assert metadata(tmp_path / "o.zip")["refused"]["b.png"].startswith("20x16 is not square")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resolution=100"], "100 is not a power of two from 8 to 8192; the nearest: 64 or 128"),
        (["--resolution=2"], "the nearest: 8"),
        (["--resolution=0"], "the nearest: 8"),
        (["--resolution=10000"], "the nearest: 8192"),
        (["--resolution=64x32"], "64x32 is not square; expected for example 64"),
        (["--resolution=big"], "'big'; expected a side in pixels"),
        (["--transform=centre-crop"], "Did you mean 'center-crop'?"),
        (["--transform=fit"], "give --resolution"),
        (["--resize-filter=lanzcos"], "Did you mean 'lanczos'?"),
        (["--channels=gray"], "Did you mean 'grey'?"),
        (["--pad-color=red"], "--transform=pad"),
        (["--transform=pad", "--pad-color=redd"], "'redd' is no colour"),
        (["--background=12"], "'12' is no colour"),
        (["--labels=folder"], "Did you mean 'folders'?"),
        (["--max-images=0"], "--max-images"),
        (["--workers=0"], "--workers"),
        (["--resolutoin=64"], "Did you mean"),
    ],
)
def test_wrong_options(tmp_path, options, said, refusal):
    save(tmp_path / "in" / "a.png")
    assert said in refusal("convert", "--source", tmp_path / "in", "--dest", tmp_path / "o.zip", *options)
    assert not (tmp_path / "o.zip").exists()


def test_missing_options_and_unknown_commands(tmp_path, refusal):
    assert "--source" in refusal("convert", "--dest", tmp_path / "o.zip")
    assert "--dest" in refusal("convert", "--source", tmp_path)
    assert "Did you mean 'convert'?" in refusal("convert2")


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, refusal):
    save(tmp_path / "in" / "a.png")
    convert(tmp_path / "in", tmp_path / "out" / "o.zip")
    before = (tmp_path / "out" / "o.zip").read_bytes()
    calls = []

    def full_disk(self, png):
        calls.append(png)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_tool.DatasetWriter, "add", full_disk)
    arguments = ["convert", "--source", tmp_path / "in", "--dest", tmp_path / "out" / "o.zip", "--overwrite"]
    assert "can't be written (No space left on device)" in refusal(*arguments)
    assert calls and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["o.convert-report.json", "o.zip"]
    assert (tmp_path / "out" / "o.zip").read_bytes() == before


def test_interrupt_leaves_no_zip_and_the_same_command_goes_on(tmp_path):
    save(tmp_path / "in" / "0.png", picture(512, 512, channels=1))
    for i in range(1, 300):
        (tmp_path / "in" / f"{i}.png").hardlink_to(tmp_path / "in" / "0.png")
    (tmp_path / "out").mkdir()
    arguments = ["convert", "--source", tmp_path / "in", "--resolution", "256", "--dest", tmp_path / "out" / "o.zip"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, ROOT / "dataset_tool.py", *arguments, "--workers", "2"],
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job is born ignoring Ctrl-C
    )
    partial, limit = tmp_path / "out" / ".o.zip.partial", time.monotonic() + 20
    while not (partial.exists() and partial.stat().st_size > 200_000) and time.monotonic() < limit:  # a few images
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does: the workers get it, too
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130 and stderr.split() == ["Interrupted."], stderr
    done = re.search(r"Stopped after (\d+) of 300 images; the same command goes on there.", stdout)
    assert done and not (tmp_path / "out" / "o.zip").exists()
    code, stdout, _ = run(*arguments, "--workers", 1)
    assert code == 0 and f"Going on: {done[1]} of 300 images are done already." in stdout
    assert len(pixels(tmp_path / "out" / "o.zip")) == 300


def _die() -> None:
    """An initializer that ends its process."""
    os._exit(1)


def test_killed_worker_is_one_line(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(conversion, "MIN_FILES_PER_WORKER", 1)
    monkeypatch.setattr(conversion, "_prepare_worker", _die)
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png")
    error = refusal("convert", "--source", tmp_path / "in", "--dest", tmp_path / "o.zip", "--workers", 2)
    assert "a worker was killed" in error and not (tmp_path / "o.zip").exists()


# -- What it says while it works


def test_progress_is_lines_in_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "REPORT_INTERVAL_SEC", 0)
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png")
    stdout = convert(tmp_path / "in", tmp_path / "o.zip", "--resolution=32", "--channels=rgb")
    lines = stdout.splitlines()
    assert lines[0] == f"Found 3 images in {tmp_path / 'in'}, converting 3."
    assert lines[2].startswith("1 of 3 images, ") and lines[2].endswith("left") and lines[3].startswith("2 of 3")
    assert lines[4].startswith(f"Wrote {tmp_path / 'o.zip'}: 3 images, 32x32, RGB, 0 classes; 0 refused, 3 enlarged")
    assert "\r" not in stdout and "\x1b" not in stdout and len(lines) == 5


# -- Digits

SHIPPED = ROOT / "datasets" / "digits.zip"
MADE_WITH = ("13.0.0", "2.3.3")  # Pillow and zlib-ng; others may pack the same pixels into other bytes


def test_shipped_digits():
    content = metadata(SHIPPED)
    arrays = pixels(SHIPPED)
    assert len(arrays) == len(content["labels"]) == 1797 and content["num_classes"] == 10
    assert all(array.shape == (16, 16) and array.dtype == np.uint8 for array in arrays)
    counts = np.bincount([label for _, label in content["labels"]])
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published by UCI
    assert "Alpaydin" in content["attribution"] and content["license"] == "CC-BY-4.0"
    corners = np.stack(arrays)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) == 0 and 200 < np.stack(arrays).max(axis=(1, 2)).mean() <= 255  # white on black


def test_digits_are_made_again_as_shipped(tmp_path, refusal):
    from sklearn.datasets import load_digits

    code, stdout, stderr = run("digits", "--dest", tmp_path / "d.zip")
    assert code == 0 and "1,797 images" in stdout, stderr
    assert metadata(tmp_path / "d.zip") == metadata(SHIPPED)
    made = np.stack(pixels(tmp_path / "d.zip")).astype(int)
    assert np.array_equal(made, np.stack(pixels(SHIPPED)))
    blocks = made.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4)) * (16 / 255)
    assert np.abs(blocks - load_digits().images).mean() < 1  # of 16: the same digits in the same order
    if (PIL.__version__, features.version("zlib_ng")) == MADE_WITH:
        assert (tmp_path / "d.zip").read_bytes() == SHIPPED.read_bytes()
    assert "--overwrite" in refusal("digits", "--dest", tmp_path / "d.zip")


def test_digits_without_scikit_learn_is_one_line(tmp_path, monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install scikit-learn" in refusal("digits", "--dest", tmp_path / "d.zip")
    assert not (tmp_path / "d.zip").exists()
