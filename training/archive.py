"""Files inside a zip: found once and read with `os.pread` by any number of forked workers; and written in order."""

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

from torch_utils.images import ImageRefused, check_file_size

# Field widths of the format (PKWARE APPNOTE 6.3.10): a value that does not fit is all ones and stands in a zip64 field.
MAX_16, MAX_32 = 0xFFFF, 0xFFFFFFFF
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
DIRECTORY_ENTRY = struct.Struct("<4s6H3I5H2I")
DIRECTORY_END = struct.Struct("<4s4H2IH")
DIRECTORY_END_64 = struct.Struct("<4sQ2H2I4Q")
DIRECTORY_LOCATOR_64 = struct.Struct("<4sIQI")
VERSION, VERSION_64 = 20, 45  # of the format, times ten, that is needed to unpack
UNIX = 3 << 8  # in "made by": the permissions below count
MIDNIGHT, JANUARY_1980 = 0, (1 << 5) | 1  # the same bytes tomorrow
UTF_8 = 0x800  # flag: how the name is written
REGULAR_FILE_644 = 0o644 << 16


class Member(NamedTuple):
    """Where the bytes of a file lie inside a zip."""

    offset: int  # of its local header
    packed_size: int
    size: int
    method: int
    crc: int
    encrypted: bool


def list_zip(path: Path) -> dict[str, Member]:
    """All files of a zip by name; of several with the same name the last, as when unpacking.

    Raises:
        ValueError: not a zip that can be read, and why.
    """
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                sizes = info.compress_size, info.file_size
                encrypted = bool(info.flag_bits & 1)
                member = Member(info.header_offset, *sizes, info.compress_type, info.CRC, encrypted)
                if not info.is_dir():
                    members[info.filename.replace("\\", "/")] = member
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(str(error)) from None
    return members


def read_member(descriptor: int, member: Member) -> bytes:
    """The content of one file of a zip. Its local header tells where it starts (the central directory does not).

    Raises:
        ImageRefused: encrypted, packed in another way than stored or deflated, or damaged.
    """
    if member.encrypted:
        raise ImageRefused("encrypted in the zip; unpack the zip first")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageRefused(f"packed with method {member.method}, not stored or deflated; unpack the zip first")
    check_file_size(member.size)
    check_file_size(member.packed_size)
    try:
        header = os.pread(descriptor, 30, member.offset)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", header)
        data = os.pread(descriptor, member.packed_size, member.offset + 30 + name_length + extra_length)
        if member.method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size)
    except (OSError, OverflowError, struct.error, zlib.error) as error:  # an offset may have 64 bits
        raise ImageRefused(f"damaged in the zip ({error})") from None
    if signature != b"PK\x03\x04" or len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ImageRefused("damaged in the zip (checksum)")
    return data


class _Entry(NamedTuple):
    """A line of the central directory."""

    name: bytes
    flags: int
    crc: int
    size: int
    offset: int


class ZipWriter:
    """Writes stored files one after the other, from where the stream stands. Its bytes depend on nothing else.

    Unlike `zipfile` it can go on where another process was killed: `adopt` takes over what is in the stream already.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._entries: list[_Entry] = []

    def write(self, name: str, data: bytes) -> None:
        """Append a file of less than 4 GiB."""
        if len(data) >= MAX_32:
            raise ValueError(f"{name} is {len(data):,} bytes; expected less than 4 GiB")
        entry = self._entry(name, zlib.crc32(data), len(data))
        self._stream.write(_local_header(entry) + data)
        self._entries.append(entry)

    def adopt(self, name: str, crc: int, size: int) -> bool:
        """Take over the next file of the stream when it is this one, whole; else leave the stream where it was."""
        entry = self._entry(name, crc, size)
        header = _local_header(entry)
        data = self._stream.read(len(header) + size)
        if len(data) == len(header) + size and data.startswith(header) and zlib.crc32(data[len(header) :]) == crc:
            self._entries.append(entry)
            return True
        self._stream.seek(entry.offset)
        return False

    def finish(self) -> None:
        """Write the central directory: without it the stream is no zip."""
        start = self._stream.tell()
        for entry in self._entries:
            self._stream.write(_directory_entry(entry))
        size, count = self._stream.tell() - start, len(self._entries)
        if count >= MAX_16 or start >= MAX_32 or size >= MAX_32:
            end_64 = (
                b"PK\x06\x06",
                DIRECTORY_END_64.size - 12,
                VERSION_64,
                VERSION_64,
                0,
                0,
                count,
                count,
                size,
                start,
            )
            self._stream.write(DIRECTORY_END_64.pack(*end_64))
            self._stream.write(DIRECTORY_LOCATOR_64.pack(b"PK\x06\x07", 0, start + size, 1))
        counts, place = (min(count, MAX_16),) * 2, (min(size, MAX_32), min(start, MAX_32))
        self._stream.write(DIRECTORY_END.pack(b"PK\x05\x06", 0, 0, *counts, *place, 0))

    def _entry(self, name: str, crc: int, size: int) -> _Entry:
        return _Entry(name.encode(), 0 if name.isascii() else UTF_8, crc, size, self._stream.tell())


def _local_header(entry: _Entry) -> bytes:
    described = (VERSION, entry.flags, zipfile.ZIP_STORED, MIDNIGHT, JANUARY_1980, entry.crc, entry.size, entry.size)
    return LOCAL_HEADER.pack(b"PK\x03\x04", *described, len(entry.name), 0) + entry.name


def _directory_entry(entry: _Entry) -> bytes:
    extra = struct.pack("<2HQ", 1, 8, entry.offset) if entry.offset >= MAX_32 else b""
    version = VERSION_64 if extra else VERSION
    described = (entry.flags, zipfile.ZIP_STORED, MIDNIGHT, JANUARY_1980, entry.crc, entry.size, entry.size)
    lengths = (len(entry.name), len(extra), 0)
    return (
        DIRECTORY_ENTRY.pack(
            *(b"PK\x01\x02", UNIX | version, version, *described),
            *(*lengths, 0, 0, REGULAR_FILE_644, min(entry.offset, MAX_32)),
        )
        + entry.name
        + extra
    )
