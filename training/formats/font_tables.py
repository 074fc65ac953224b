"""What a font file says of itself: which characters it has, and who made it. Source: the OpenType specification."""

import struct
from pathlib import Path

LICENSE_NAME_ID, FAMILY_NAME_ID, COPYRIGHT_NAME_ID = 13, 1, 0
WINDOWS = 3


def characters_of(path: Path) -> set[int]:
    """Code points that have a glyph (table `cmap`, formats 4 and 12).

    Raises:
        ValueError: not a font, or damaged.
    """
    try:
        table = _table(path.read_bytes(), b"cmap")
        (count,) = struct.unpack_from(">H", table, 2)
        found: set[int] = set()
        for i in range(count):
            (offset,) = struct.unpack_from(">I", table, 4 + 8 * i + 4)
            (kind,) = struct.unpack_from(">H", table, offset)
            if kind == 12:
                found |= _format_12(table, offset)
            elif kind == 4:
                found |= _format_4(table, offset)
    except struct.error as error:
        raise ValueError(f"its table of characters is damaged: {error}") from None
    return found


def _format_12(table: bytes, offset: int) -> set[int]:
    (count,) = struct.unpack_from(">I", table, offset + 12)
    found: set[int] = set()
    for group in range(count):
        first, last, glyph = struct.unpack_from(">3I", table, offset + 16 + 12 * group)
        found.update(code for code in range(first, min(last, 0x10FFFF) + 1) if glyph + code - first)
    return found


def _format_4(table: bytes, offset: int) -> set[int]:
    """Segments of the first 65,536 characters; the last one, U+FFFF, is only an end mark."""
    (double,) = struct.unpack_from(">H", table, offset + 6)
    count = double // 2
    ends, starts, deltas, ranges = (
        struct.unpack_from(f">{count}H", table, offset + 14 + place)
        for place in (0, double + 2, 2 * double + 2, 3 * double + 2)
    )
    found: set[int] = set()
    for i in range(count):
        for code in range(starts[i], ends[i] + 1):
            glyph = code + deltas[i]
            if ranges[i]:
                place = offset + 16 + 3 * double + 2 * i + ranges[i] + 2 * (code - starts[i])
                (glyph,) = struct.unpack_from(">H", table, place)
                glyph = glyph + deltas[i] if glyph else 0
            if glyph & 0xFFFF and code != 0xFFFF:
                found.add(code)
    return found


def font_credits(path: Path) -> dict[str, str]:
    """Attribution and licence, as a data set passes them on; {} where the font says nothing."""
    try:
        names = _names(_table(path.read_bytes(), b"name"))
    except (ValueError, struct.error):
        return {}
    family, text = names.get(FAMILY_NAME_ID, path.stem), names.get(LICENSE_NAME_ID, "")
    parts = [f"Drawn with the font {family}", names.get(COPYRIGHT_NAME_ID, ""), text]
    credits = {"attribution": ". ".join(part.strip(". ") for part in parts if part) + "."}
    if "Open Font License" in text:
        credits["license"] = "OFL-1.1"
    return credits


def _names(table: bytes) -> dict[int, str]:
    """Name id -> text, of the records for Windows, which are UTF-16."""
    count, strings = struct.unpack_from(">2H", table, 2)
    found: dict[int, str] = {}
    for i in range(count):
        platform, _, _, name_id, length, offset = struct.unpack_from(">6H", table, 6 + 12 * i)
        if platform == WINDOWS:
            text = table[strings + offset : strings + offset + length].decode("utf-16-be", "replace")
            found.setdefault(name_id, text)
    return found


def _table(data: bytes, tag: bytes) -> bytes:
    """The bytes of one table; of a collection the first font counts."""
    try:
        start = struct.unpack_from(">I", data, 12)[0] if data[:4] == b"ttcf" else 0
        (count,) = struct.unpack_from(">H", data, start + 4)
        for i in range(count):
            name, _, offset, length = struct.unpack_from(">4s3I", data, start + 12 + 16 * i)
            if name == tag:
                return data[offset : offset + length]
    except struct.error:
        pass
    raise ValueError(f"it has no table {tag.decode()}")
