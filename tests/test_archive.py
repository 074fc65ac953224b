"""Zips: written as everybody else reads them, and read from any process."""

import io
import os
import zipfile
import zlib

import pytest

from torch_utils.images import ImageRefused
from training.archive import ZipWriter, list_zip, read_member

FILES = {"a.png": b"one", "ü ☃.png": b"two", "deep/er/b.bin": bytes(range(256)) * 50, "empty": b""}


def written(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    writer = ZipWriter(stream)
    for name, data in files.items():
        writer.write(name, data)
    writer.finish()
    return stream.getvalue()


def test_bytes_are_those_of_zipfile():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in FILES.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    assert written(FILES) == stream.getvalue()


def test_zipfile_and_our_reader_read_it(tmp_path):
    path = tmp_path / "o.zip"
    path.write_bytes(written(FILES))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and {n: archive.read(n) for n in archive.namelist()} == FILES
    descriptor = os.open(path, os.O_RDONLY)
    try:
        members = list_zip(path)
        assert {n: read_member(descriptor, m) for n, m in members.items() if m.size} == {
            n: d for n, d in FILES.items() if d
        }
        with pytest.raises(ImageRefused, match="checksum"):
            read_member(descriptor, members["a.png"]._replace(crc=1))
        with pytest.raises(ImageRefused, match="damaged in the zip"):  # a zip64 field may say so
            read_member(descriptor, members["a.png"]._replace(offset=(1 << 64) - 1))
    finally:
        os.close(descriptor)


def test_more_files_than_16_bits_count(tmp_path):
    path = tmp_path / "many.zip"
    path.write_bytes(written({f"{i}": b"%d" % i for i in range(65_600)}))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 65_600 and archive.read("65599") == b"65599"
    assert len(list_zip(path)) == 65_600


def test_exactly_as_many_files_as_16_bits_count(tmp_path):
    """65,535 is the mark of a zip64 field, so it needs one itself."""
    path = tmp_path / "limit.zip"
    path.write_bytes(written({f"{i}": b"" for i in range(65_535)}))
    assert path.read_bytes().count(b"PK\x06\x06") == 1 and len(list_zip(path)) == 65_535


def test_offsets_beyond_4_gib(tmp_path):
    path = tmp_path / "large.zip"
    with path.open("wb") as stream:  # sparse: takes a few kilobytes of the disk
        writer = ZipWriter(stream)
        writer.write("near", b"1")
        stream.seek((1 << 32) + 5)
        writer.write("far", b"2" * 100)
        writer.finish()
    assert path.stat().st_blocks < 1000
    with zipfile.ZipFile(path) as archive:
        assert archive.read("near") == b"1" and archive.read("far") == b"2" * 100
    members = list_zip(path)
    assert members["far"].offset == (1 << 32) + 5
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert read_member(descriptor, members["far"]) == b"2" * 100
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("damage", ["none", "data", "header", "cut"])
def test_adopting_takes_only_whole_files(damage):
    stream = io.BytesIO()
    writer = ZipWriter(stream)
    writer.write("a", b"first")
    end_of_first = stream.tell()
    writer.write("b", b"second")
    content = bytearray(stream.getvalue())
    if damage == "data":
        content[-1] ^= 1
    elif damage == "header":
        content[end_of_first + 2] ^= 1
    elif damage == "cut":
        del content[-1]

    stream = io.BytesIO(bytes(content))
    again = ZipWriter(stream)
    assert again.adopt("a", zlib.crc32(b"first"), 5)
    assert again.adopt("b", zlib.crc32(b"second"), 6) == (damage == "none")
    if damage != "none":
        assert stream.tell() == end_of_first
        again.write("b", b"second")
    again.finish()
    assert stream.getvalue() == written({"a": b"first", "b": b"second"})
