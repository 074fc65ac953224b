"""Image files as training reads them: bytes -> 8-bit pixels, exactly as stored, by the fastest decoder installed."""

import functools
import io
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image

EXIF_ORIENTATION = 0x0112
MAX_FAST_PIXELS = 1 << 26  # beyond, Pillow has its say about decompression bombs

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN_HEADERS = (b"\x08\x00\x00\x00\x00", b"\x08\x02\x00\x00\x00")  # 8 bits, grey or RGB, not interlaced
_HARMLESS = (b"gAMA", b"cHRM", b"sRGB", b"pHYs")  # Pillow, too, leaves the pixels alone when it sees these


class Undecodable(ValueError):
    """An image that training does not take. The message says what is wrong with it, without the name of the file."""


def decode(data: bytes) -> np.ndarray:
    """Decode an image file without changing a pixel.

    pyspng decodes plain PNG files when it is installed, Pillow everything else. Which one it was can't be told from the
    result, nor from the error.

    Args:
        data: content of the file.

    Returns:
        uint8 [H, W] for grey, [H, W, 3] for RGB.

    Raises:
        Undecodable: damaged, not an image, not 8-bit grey or RGB, or stored rotated.
    """
    fast = _fast_png()
    if fast is not None and _is_plain_png(data):
        try:
            return fast(data)
        except RuntimeError:  # pyspng's only error; Pillow knows the reason, or reads the file after all
            pass
    return _decode_by_pillow(data)


def _decode_by_pillow(data: bytes) -> np.ndarray:
    try:
        image = PIL.Image.open(io.BytesIO(data))
        pixels = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise Undecodable(f"can't be read ({reason})") from None
    if image.mode not in ("L", "RGB") or pixels.dtype != np.uint8:
        raise Undecodable(f"has pixels of kind {image.mode}; expected 8-bit grey or RGB")
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        raise Undecodable("is stored rotated (EXIF); expected it upright")
    return pixels


@functools.cache
def _fast_png() -> Callable[[bytes], np.ndarray] | None:
    """pyspng's decoder, or None where it is not installed."""
    try:
        import pyspng
    except ImportError:
        return None
    load: Callable[[bytes], np.ndarray] = pyspng.load
    return load


def _is_plain_png(data: bytes) -> bool:
    """Whether both decoders agree about a PNG file: 8-bit grey or RGB, whole, and nothing in it but pixels.

    pyspng ignores all checksums and knows neither palettes as Pillow returns them, 16 bits, nor EXIF. So a file with an
    unknown chunk, or one whose CRC-32 is wrong, goes to Pillow. The walk costs 3 % of decoding.
    """
    if data[:8] != _SIGNATURE or data[8:16] != b"\0\0\0\x0dIHDR" or data[24:29] not in _PLAIN_HEADERS:
        return False
    if int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) > MAX_FAST_PIXELS:
        return False
    view, position, seen = memoryview(data), 8, b"IHDR"
    while seen != b"IEND":
        end = position + 8 + int.from_bytes(data[position : position + 4])  # of the content; four bytes of CRC follow
        kind = data[position + 4 : position + 8]
        known = position == 8 or kind == b"IDAT" or (seen == b"IDAT" and kind == b"IEND")
        if not (known or (seen != b"IDAT" and kind in _HARMLESS)):
            return False
        if zlib.crc32(view[position + 4 : end]).to_bytes(4) != data[end : end + 4]:
            return False
        position, seen = end + 4, kind
    return True  # what follows the end is nobody's business
