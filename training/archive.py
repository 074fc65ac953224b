"""Files inside a zip, found once and read with `os.pread`: one open file serves any number of forked workers."""

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from torch_utils.images import ImageRefused, check_file_size


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
    except (OSError, struct.error, zlib.error) as error:
        raise ImageRefused(f"damaged in the zip ({error})") from None
    if signature != b"PK\x03\x04" or len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ImageRefused("damaged in the zip (checksum)")
    return data
