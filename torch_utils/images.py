"""Any image file -> a square of 8-bit pixels, always by the same rules.

`dataset_tool.py` converts data sets with this module and `generate.py --instance-images` reads single images with it,
so an image that conditions a model is treated exactly as the training images were.

Rules: EXIF orientation is applied; of an animation the first frame counts; transparency is flattened on a background
colour (white); 16-bit grey is divided by 257, so that 65535 becomes 255; colour profiles are ignored, as everywhere in
this field; files that can't be read whole are refused with a reason.
"""

import functools
import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from torch_utils.command_line import UserError

# Formats that hold photographs or drawings as pixels. Left out on purpose: EPS (runs Ghostscript), WMF, PDF, HDF5, ...
# fmt: off
FORMATS = [
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM",
    "QOI", "SGI", "TGA", "TIFF", "WEBP",
]
# fmt: on
TRANSFORMS = ("center-crop", "pad", "fit", "none")
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
MAX_FILE_BYTES = 1 << 30  # larger files are refused before they fill the memory
PNG_LEVEL = 3  # 256x256 photographs: half the time of zlib's usual level 6, files 3 % larger

# EXIF tag 0x0112 -> what brings the picture upright
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)


class ImageRefused(ValueError):
    """An image that can't be used. The message is the reason, without the name of the file."""


class ContentBox(NamedTuple):
    """Where the picture lies in a padded square: pixels, right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int


def image_extensions() -> frozenset[str]:
    """Lower-case endings ('.png', '.jpeg', ...) of the files that are taken for images."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in _formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageRefused: a broken link, a device, not readable, or larger than MAX_FILE_BYTES.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ImageRefused("not a regular file" if path.exists() else "no such file, or a broken link")
        check_file_size(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise ImageRefused(f"can't be read ({error.strerror})") from None


def check_file_size(num_bytes: int) -> None:
    """Refuse empty and absurdly large files."""
    if num_bytes == 0:
        raise ImageRefused("the file is empty (0 bytes)")
    if num_bytes > MAX_FILE_BYTES:
        raise ImageRefused(f"the file is {num_bytes:,} bytes; at most {MAX_FILE_BYTES:,} are read")


def decode_image(data: bytes, background: Color = WHITE) -> Image.Image:
    """Decode an image file, whatever its kind, to mode L (grey) or RGB, upright and opaque.

    Args:
        data: content of the file.
        background: what shows through transparent pixels.

    Raises:
        ImageRefused: empty, truncated, damaged, not an image, a decompression bomb, or pixels without an agreed range.
    """
    check_file_size(len(data))
    try:
        with warnings.catch_warnings():  # damaged EXIF, odd palettes, large photographs: nothing the user can act on
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
            image.load()
            orientation = _orientation(image)
            image = _to_8_bit(image, background)
    except ImageRefused:
        raise
    except UnidentifiedImageError:
        raise ImageRefused("not an image in a format that is read here") from None
    except Image.DecompressionBombError as error:
        raise ImageRefused(f"a decompression bomb? {error}") from None
    except MemoryError:
        raise ImageRefused("too large for the memory of this machine") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly every type there is
        raise ImageRefused(f"damaged or truncated ({error or type(error).__name__})") from None
    return image.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image (TIFF is already upright then); 1 where the EXIF block is damaged."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # the picture itself was decoded well
        return 1


def _to_8_bit(image: Image.Image, background: Color) -> Image.Image:
    """A loaded image of any Pillow mode -> mode L or RGB."""
    if image.has_transparency_data and image.mode not in ("I", "I;16", "F"):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*background, 255)), layer).convert("RGB")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageRefused(f"pixels of type {image.mode} (32 bits) have no agreed range; save it with 8 or 16 bits")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def is_grey(image: Image.Image) -> bool:
    """Whether an L or RGB image has no colour: R == G == B in every pixel."""
    if image.mode == "L":
        return True
    pixels = np.asarray(image)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def content_box(width: int, height: int, side: int) -> ContentBox:
    """Where `make_square(..., 'pad')` puts a picture of width x height pixels: crop to it to undo the padding."""
    scale = side / max(width, height)
    new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
    left, top = (side - new_width) // 2, (side - new_height) // 2
    return ContentBox(left, top, left + new_width, top + new_height)


def make_square(
    image: Image.Image,
    resolution: int | None = None,
    transform: str = "center-crop",
    resize_filter: str = "lanczos",
    pad_color: Color = BLACK,
) -> Image.Image:
    """Make an L or RGB image square, then resize it. An image of the wanted size keeps its pixels exactly.

    Args:
        image: mode L or RGB.
        resolution: side of the result in pixels; None keeps the side that the transform gives.
        transform: 'center-crop' (the largest square in the middle), 'pad' (the whole picture between bars), 'fit'
            (stretched: the aspect ratio changes), 'none' (it must be square already).
        resize_filter: a key of FILTERS; all of them are antialiased.
        pad_color: red, green, blue, 0 to 255. A colour that is not grey turns a grey image into RGB.

    Raises:
        ImageRefused: the image would have to be square already, and is not.
    """
    width, height = image.size
    kernel = FILTERS[resize_filter]
    if transform == "pad":
        side = resolution or max(width, height)
        box = content_box(width, height, side)
        size = (box.right - box.left, box.bottom - box.top)
        image = image if image.size == size else image.resize(size, kernel)
        if size == (side, side):
            return image
        if len(set(pad_color)) > 1:
            image = image.convert("RGB")
        canvas = Image.new(image.mode, (side, side), pad_color if image.mode == "RGB" else pad_color[0])
        canvas.paste(image, (box.left, box.top))
        return canvas

    if width != height and (transform == "none" or (transform == "fit" and resolution is None)):
        raise ImageRefused(
            f"{width}x{height} is not square; use the transform center-crop, pad, or fit with a resolution"
        )
    if width != height and transform == "center-crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if resolution is None or image.size == (resolution, resolution):
        return image
    return image.resize((resolution, resolution), kernel)


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes; the same for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def load_image(
    source: str | Path | bytes,
    resolution: int | None = None,
    channels: int = 3,
    transform: str = "center-crop",
    resize_filter: str = "lanczos",
    pad_color: Color = BLACK,
    background: Color = WHITE,
) -> NDArray[np.uint8]:
    """Read, decode, make square and resize one image.

    Args:
        source: path of a file, or its content.
        channels: 1 (grey) or 3 (red, green, blue).
        resolution, transform, resize_filter, pad_color: as for `make_square`.
        background: as for `decode_image`.

    Returns:
        uint8 [C, H, W], 0 to 255, H = W.

    Raises:
        UserError: the file can't be used; the message names it and the reason.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}; expected 1 or 3")
    try:
        data = source if isinstance(source, bytes) else read_file(source)
        image = decode_image(data, background).convert("L" if channels == 1 else "RGB")
        image = make_square(image, resolution, transform, resize_filter, pad_color)
    except ImageRefused as error:
        name = f"image of {len(source):,} bytes" if isinstance(source, bytes) else source
        raise UserError(f"{name}: {error}") from None
    # A coloured border turns grey into RGB, so the number of channels is settled last.
    pixels = np.atleast_3d(np.asarray(image.convert("L" if channels == 1 else "RGB")))  # [HWC]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
