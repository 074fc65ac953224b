import io
import json
import multiprocessing
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import pattern_images, write_zip

from torch_utils.command_line import UserError
from torch_utils.files import companion
from training import decoding
from training.dataset import Draws, ImageFolderDataset, LabelledSource
from training.randomness import hashed


def test_dataset_reads_images_and_labels_by_name(patterns_zip: Path) -> None:
    images, labels = pattern_images(40)
    dataset = ImageFolderDataset(patterns_zip, use_labels=True)
    assert (len(dataset), dataset.image_shape, dataset.c_dim, dataset.h_dim) == (40, (1, 8, 8), 4, 0)
    for i in (0, 7, 39):
        image, label = dataset[i]
        assert image.dtype == np.uint8
        assert np.array_equal(image[0], images[i])
        assert label.dtype == np.float32
        assert label.argmax() == labels[i]
        assert label.sum() == 1


def test_dataset_order_does_not_depend_on_the_zip(tmp_path: Path) -> None:
    images, labels = pattern_images(12)
    names = [f"a/{i:03d}.png" for i in range(12)]
    shuffled = np.random.default_rng(0).permutation(12)
    first = ImageFolderDataset(write_zip(tmp_path / "1.zip", images, labels, names), use_labels=True)
    second = ImageFolderDataset(
        write_zip(
            tmp_path / "2.zip",
            [images[i] for i in shuffled],
            [labels[i] for i in shuffled],
            [names[i] for i in shuffled],
        ),
        use_labels=True,
    )
    assert first.names == second.names
    assert first.fingerprint() == second.fingerprint()
    for i in range(12):
        assert np.array_equal(first[i][0], second[i][0])
        assert np.array_equal(first[i][1], second[i][1])


def test_dataset_reads_deflated_zips_and_folders_alike(tmp_path: Path, patterns_zip: Path) -> None:
    with (
        zipfile.ZipFile(patterns_zip) as archive,
        zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as copy,
    ):
        archive.extractall(tmp_path / "folder")
        for info in archive.infolist():
            copy.writestr(info.filename, archive.read(info))
    reference = ImageFolderDataset(patterns_zip, use_labels=True)
    for path in (tmp_path / "d.zip", tmp_path / "folder"):
        other = ImageFolderDataset(path, use_labels=True)
        assert other.names == reference.names
        assert other.fingerprint() == reference.fingerprint()
        assert np.array_equal(other[5][0], reference[5][0])


def test_dataset_reads_a_folder_for_its_checksums_once(patterns_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(patterns_zip) as archive:
        archive.extractall(tmp_path / "folder")
    zipped, folder = ImageFolderDataset(patterns_zip), ImageFolderDataset(tmp_path / "folder")
    fingerprint = folder.fingerprint()
    (tmp_path / "folder" / folder.names[3]).unlink()  # nobody looks again
    assert folder.fingerprint() == fingerprint == zipped.fingerprint()
    assert [folder.checksum(i) for i in range(40)] == zipped.checksums.tolist()
    part = ImageFolderDataset(patterns_zip, max_images=9)
    assert part.checksums.tolist() == [zipped.checksum(zipped.names.index(name)) for name in part.names]


def test_dataset_names_a_file_that_vanished_before_its_checksum(patterns_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(patterns_zip) as archive:
        archive.extractall(tmp_path / "folder")
    folder = ImageFolderDataset(tmp_path / "folder")
    (tmp_path / "folder" / folder.names[3]).unlink()
    with pytest.raises(UserError, match=r"img00000003\.png no such file"):
        folder.fingerprint()


def _sum_of_images(dataset: ImageFolderDataset) -> int:
    return int(sum(dataset.image(i).sum(dtype=np.int64) for i in range(len(dataset))))


def test_dataset_survives_forked_workers(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip)  # the descriptor is open before the fork
    expected = _sum_of_images(dataset)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_sum_of_images, [dataset] * 8) == [expected] * 8


def test_dataset_subset_keeps_labels_with_images(patterns_zip: Path) -> None:
    whole = ImageFolderDataset(patterns_zip, use_labels=True)
    part = ImageFolderDataset(patterns_zip, use_labels=True, max_images=9, subset_seed=3)
    assert len(part) == 9
    assert part.c_dim == 4  # the data set's classes, not the subset's
    assert part.names != ImageFolderDataset(patterns_zip, max_images=9, subset_seed=4).names
    for i, name in enumerate(part.names):
        j = whole.names.index(name)
        assert np.array_equal(part[i][0], whole[j][0])
        assert np.array_equal(part[i][1], whole[j][1])


def test_dataset_num_classes_is_the_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "few.zip"
    write_zip(path, pattern_images(3)[0])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    names = sorted(name for name in files if name.endswith(".png"))
    files["dataset.json"] = json.dumps({"labels": [[n, 1] for n in names], "num_classes": 10}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert ImageFolderDataset(path, use_labels=True).c_dim == 10


def test_dataset_cache_gives_the_same_images(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    before = dataset.images([3, 1, 2])
    dataset.decode_into_memory()
    assert dataset.in_memory
    assert (dataset.images([3, 1, 2]) == before).all()


@pytest.mark.parametrize("size", [(6, 6), (8, 16), (4, 4)])
def test_dataset_refuses_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_zip(tmp_path / "odd.zip", [np.zeros(size, np.uint8)])
    with pytest.raises(UserError, match=r"power of two.*--source=\S+odd\.zip --dest=NAME\.zip --resolution=\d+"):
        ImageFolderDataset(path)


def test_dataset_refuses_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ImageFolderDataset(tmp_path / "no.zip")
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(UserError, match="can't be read as a zip"):
        ImageFolderDataset(tmp_path / "text.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images.*dataset_tool\.py convert"):
        ImageFolderDataset(tmp_path / "empty")


def test_dataset_names_the_image_that_is_damaged_or_different(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(3):
        PIL.Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    PIL.Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "2.png")
    dataset = ImageFolderDataset(folder)
    with pytest.raises(UserError, match=r"1\.png can't be read \(not an image\)"):
        dataset.image(1)
    with pytest.raises(UserError, match=r"2\.png is \[1, 16, 16\], 0\.png is \[1, 8, 8\]"):
        dataset.image(2)


def test_dataset_notices_a_zip_changed_under_it(tmp_path: Path, patterns_zip: Path) -> None:
    content = bytearray(patterns_zip.read_bytes())
    dataset = ImageFolderDataset(patterns_zip)
    place = content.find(b"IDAT", content.find(b"img00000004.png")) + 6
    content[place] ^= 0xFF
    patterns_zip.write_bytes(content)
    with pytest.raises(UserError, match=r"img00000004\.png.*damaged"):
        ImageFolderDataset(patterns_zip).image(4)
    assert dataset.image(5).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["nothing.png", 0]], r"has no label for 1 images, first a\.png"),
        ([["a.png", -1]], "class number"),
        ([["a.png", [0.5, 0.5]]], "one-hot"),
        ([1, 2], r"\[\[\"name.png\", class number\]"),
        ("text", r"\[\[\"name.png\", class number\]"),
    ],
)
def test_dataset_refuses_labels(tmp_path: Path, labels: object, message: str) -> None:
    path = tmp_path / "bad.zip"
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, format="png")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", buffer.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    with pytest.raises(UserError, match=message):
        ImageFolderDataset(path, use_labels=True)


def test_dataset_json_nested_without_end_is_one_line(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "dataset.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"its dataset\.json can't be read"):
        ImageFolderDataset(tmp_path, use_labels=True)


def test_dataset_takes_names_that_are_no_text_or_break_lines(tmp_path: Path) -> None:
    names = [b"007\xe9.png", b"a\nb.png", "c\u0085d.png".encode(), "e\u2028f.png".encode()]
    for i, name in enumerate(names):
        PIL.Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "new.png")
        os.rename(os.fsencode(tmp_path / "new.png"), os.fsencode(tmp_path) + b"/" + name)  # noqa: PTH104 - bytes
    dataset = ImageFolderDataset(tmp_path)
    assert sorted(int(dataset.image(i)[0, 0, 0]) for i in range(4)) == [0, 1, 2, 3]
    before = dataset.fingerprint()
    os.rename(os.fsencode(tmp_path) + b"/007\xe9.png", os.fsencode(tmp_path) + b"/007\xe8.png")  # noqa: PTH104
    assert ImageFolderDataset(tmp_path).fingerprint() != before
    (tmp_path / "a\nb.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\\nb\.png can't be read") as caught:
        ImageFolderDataset(tmp_path).images(range(4))
    assert "\n" not in str(caught.value)


def test_folders_that_differ_behind_a_dot_are_two_data_sets(tmp_path: Path) -> None:
    for version in ("v1.0", "v1.1"):
        (tmp_path / version).mkdir()
        PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / version / "0.png")
        assert ImageFolderDataset(tmp_path / version).name == version
        assert companion(tmp_path / version, ".instances") == tmp_path / f"{version}.instances"
    assert companion(tmp_path / "a.zip", ".instances") == tmp_path / "a.instances"


def test_dataset_takes_one_hot_labels(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "hot.zip", pattern_images(2)[0])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    names = sorted(name for name in files if name.endswith(".png"))
    files["dataset.json"] = json.dumps({"labels": [[names[0], [0, 0, 1]], [names[1], [1, 0, 0]]]}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    dataset = ImageFolderDataset(path, use_labels=True)
    assert dataset.c_dim == 3
    assert [dataset.label(i).argmax() for i in range(2)] == [2, 0]


def test_dataset_never_changes_pixels_in_silence(tmp_path: Path) -> None:
    """A folder taken as it is: 16-bit, transparent and rotated images are refused, not clipped or flattened."""
    rng = np.random.default_rng(0)
    for name, image in {
        "deep": PIL.Image.fromarray(rng.integers(0, 65535, (8, 8)).astype(np.uint16)),
        "clear": PIL.Image.fromarray(rng.integers(0, 255, (8, 8, 4)).astype(np.uint8)),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        image.save(folder / "a.png")
        with pytest.raises(UserError, match=r"a\.png has pixels of kind .*dataset_tool\.py convert"):
            ImageFolderDataset(folder)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned").mkdir()
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "turned" / "a.jpg", exif=exif)
    with pytest.raises(UserError, match=r"a\.jpg is stored rotated"):
        ImageFolderDataset(tmp_path / "turned")


def _png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="png", **options)
    return buffer.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def _with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A chunk of its own between the header and the pixels."""
    return png[:33] + _chunk(kind, content) + png[33:]


def _interlaced(pixels: np.ndarray) -> bytes:
    """A grey Adam7 PNG, which Pillow reads but does not write."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [row for y, x, dy, dx in passes for row in pixels[y::dy, x::dx] if row.size]
    header = len(pixels[0]).to_bytes(4) + len(pixels).to_bytes(4) + bytes([8, 0, 0, 0, 1])
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _outcome(data: bytes) -> tuple[str, bytes]:
    """Pixels, or the error: all that can be told from outside."""
    try:
        pixels = decoding.decode(data)
    except decoding.Undecodable as error:
        return str(error), b""
    return f"{pixels.dtype} {pixels.shape}", pixels.tobytes()


def _sample_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    grey, rgb = rng.integers(0, 256, (16, 16), np.uint8), rng.integers(0, 256, (16, 16, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    palette = PIL.Image.fromarray(rgb).quantize(16)
    files = {
        "grey": _png(grey),
        "rgb": _png(rgb),
        "photograph": _png(np.cumsum(rgb // 64, axis=1, dtype=np.uint8), compress_level=9),
        "gamma": _with_chunk(_png(rgb), b"gAMA", (45455).to_bytes(4)),
        "alpha": _png(rng.integers(0, 256, (16, 16, 4), np.uint8)),
        "grey alpha": _png(rng.integers(0, 256, (16, 16, 2), np.uint8)),
        "16 bits": _png(rng.integers(0, 65536, (16, 16)).astype(np.uint16)),
        "transparent grey": _with_chunk(_png(grey), b"tRNS", b"\0\7"),
        "transparent rgb": _with_chunk(_png(rgb), b"tRNS", b"\0\7\0\7\0\7"),
        "rotated": _png(rgb, exif=exif),
        "interlaced": _interlaced(grey),
        "one bit": b"",
        "palette": b"",
        "jpeg": b"",
    }
    for name, image, kind in (
        ("one bit", PIL.Image.fromarray(grey > 99), "png"),
        ("palette", palette, "png"),
        ("jpeg", PIL.Image.fromarray(rgb), "jpeg"),
    ):
        buffer = io.BytesIO()
        image.save(buffer, format=kind)
        files[name] = buffer.getvalue()
    return files


@pytest.fixture
def without_pyspng(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], tuple[str, bytes]]:
    """What `decode` does where only Pillow is installed."""

    def outcome(data: bytes) -> tuple[str, bytes]:
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_fast_png", lambda: None)
            return _outcome(data)

    return outcome


@pytest.mark.parametrize(("kind", "data"), _sample_files().items(), ids=_sample_files())
def test_decoders_agree_about_every_kind_of_file(
    kind: str, data: bytes, without_pyspng: Callable[[bytes], tuple[str, bytes]]
) -> None:
    pytest.importorskip("pyspng")
    says, pixels = _outcome(data)
    assert (says, pixels) == without_pyspng(data)
    taken = kind in ("grey", "rgb", "photograph", "gamma", "transparent grey", "transparent rgb", "interlaced", "jpeg")
    assert bool(pixels) == taken, says


def test_fast_decoder_gets_the_plain_files_only() -> None:
    plain = {kind for kind, data in _sample_files().items() if decoding._is_plain_png(data)}
    assert plain == {"grey", "rgb", "photograph", "gamma"}


def test_decoders_agree_about_every_damaged_byte(without_pyspng: Callable[[bytes], tuple[str, bytes]]) -> None:
    """pyspng looks at no checksum: on its own it would return wrong pixels for most of these."""
    pytest.importorskip("pyspng")
    whole = _sample_files()["photograph"]
    rng = np.random.default_rng(1)
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        for data in (bytes(damaged), whole[:place], whole[:place] + whole[place + 1 :]):
            assert _outcome(data) == without_pyspng(data), place
    assert _outcome(whole + b"tail") == without_pyspng(whole + b"tail")


def test_dataset_refuses_class_conditioning_without_labels(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "plain.zip", pattern_images(4)[0])
    with pytest.raises(UserError, match="has none"):
        ImageFolderDataset(path, use_labels=True)


def test_labelled_source_draws_a_label_with_its_image(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip, use_labels=True)
    source = LabelledSource(dataset)
    index = np.array([5, 0, 33])
    draws = Draws(index, hashed(0, index))
    sample = source[draws]
    assert sample.index.tolist() == [5, 0, 33]
    assert sample.c.argmax(1).tolist() == [i % 4 for i in (5, 0, 33)]
    assert sample.h.shape == (3, 0)
    assert source.conditions(draws).c.argmax(1).tolist() == [i % 4 for i in (5, 0, 33)]


def test_exemplars_are_classes_that_have_images(tmp_path: Path) -> None:
    images, _ = pattern_images(4)
    path = write_zip(tmp_path / "gaps.zip", images, [0, 2, 0, 2])
    exemplars = LabelledSource(ImageFolderDataset(path, use_labels=True)).exemplars(1000)
    assert exemplars.condition.c.argmax(1).tolist() == [0, 2]


def test_labelled_source_shows_images_of_the_class_of_each_row(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip, use_labels=True)
    condition, images = LabelledSource(dataset).showcase(6, 3)
    assert images.shape == (6, 3, 1, 8, 8)
    assert condition.c.argmax(1).tolist() == [0, 1, 2, 3, 0, 1]
    bright = images.float().unflatten(4, (2, 4)).unflatten(3, (2, 4)).mean((2, 4, 6)).flatten(2).argmax(2)
    assert (bright == condition.c.argmax(1)[:, None]).all()
    exemplars = LabelledSource(dataset).exemplars(1000)
    assert len(exemplars) == 4
    assert exemplars.condition.c.argmax(1).tolist() == [0, 1, 2, 3]
