"""torch_utils/images.py: every kind of image file becomes the right pixels, or is refused with a reason."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from torch_utils import images
from torch_utils.command_line import UserError
from torch_utils.images import ImageRefused, content_box, decode_image, is_grey, load_image, make_square

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)  # [HWC]
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)  # [HW]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, **options) -> np.ndarray:
    return np.asarray(decode_image(data, **options))


def photo(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


# -- decode_image: kinds of pixels


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "TGA"])
def test_decode_keeps_grey_and_rgb_pixels(kind):
    assert np.array_equal(decoded(encoded(Image.fromarray(COLOR), kind)), COLOR)
    assert np.array_equal(decoded(encoded(Image.fromarray(GREY), kind)), GREY)
    assert decode_image(encoded(Image.fromarray(GREY), kind)).mode == "L"


def test_decode_black_and_white():
    bits = GREY > 127
    assert np.array_equal(decoded(encoded(Image.fromarray(bits))), bits * np.uint8(255))


def test_decode_palette():
    image = Image.fromarray(COLOR).quantize(16)
    assert image.mode == "P"
    assert np.array_equal(decoded(encoded(image)), np.asarray(image.convert("RGB")))


def test_decode_flattens_rgba_on_the_background():
    alpha = np.array([0, 255, 128], np.uint8)
    image = np.dstack([np.full((1, 3, 3), 100, np.uint8), alpha[None]])
    on_white = decoded(encoded(Image.fromarray(image)))
    assert on_white[0, :, 0].tolist() == [255, 100, round(100 * 128 / 255 + 255 * 127 / 255)]
    on_red = decoded(encoded(Image.fromarray(image)), background=(255, 0, 0))
    assert on_red[0, 0].tolist() == [255, 0, 0] and on_red[0, 1].tolist() == [100, 100, 100]


def test_decode_flattens_grey_with_alpha():
    image = Image.fromarray(np.array([[[50, 0], [50, 255]]], np.uint8), mode=None)
    assert image.mode == "LA"
    assert decoded(encoded(image))[0].tolist() == [[255] * 3, [50] * 3]


def test_decode_flattens_palette_with_transparency():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[255, 255, 255], [40, 50, 60], [70, 80, 90]]
    assert decoded(encoded(image, transparency=0))[0].tolist() == expected
    assert decoded(encoded(image, "GIF", transparency=0))[0].tolist() == expected


def test_decode_flattens_transparent_color_of_rgb():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decoded(encoded(image, transparency=(1, 2, 3)))[0].tolist() == [[255, 255, 255], [4, 5, 6]]


def test_decode_cmyk():
    image = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]] * 2, np.uint8), mode="CMYK")
    pixels = decoded(encoded(image, "TIFF"))
    assert pixels[0].tolist() == [[255, 255, 255], [0, 255, 255], [0, 0, 0]]
    jpeg = decoded(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert np.abs(jpeg.astype(int) - [0, 255, 255]).max() <= 4  # not inverted


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM"])
def test_decode_scales_16_bit_instead_of_clipping(kind):
    values = np.array([[0, 128, 129, 257, 1000, 32768, 65278, 65535]], np.uint16)
    pgm = b"P5 8 1 65535\n" + values.astype(">u2").tobytes()
    data = pgm if kind == "PGM" else encoded(Image.fromarray(values), kind)
    assert decoded(data)[0].tolist() == [0, 0, 1, 1, 4, 128, 254, 255]


def test_decode_16_bit_big_endian():
    image = Image.fromarray(np.array([[0, 257, 65535]], ">u2"))
    assert image.mode == "I;16B"
    assert decoded(encoded(image, "TIFF"))[0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_decode_refuses_32_bits(dtype):
    with pytest.raises(ImageRefused, match="no agreed range"):
        decode_image(encoded(Image.fromarray(GREY.astype(dtype)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_decode_takes_the_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decoded(data) == [255, 0, 0]).all()


# -- decode_image: orientation

UPRIGHT = {  # EXIF orientation -> what it means, written with numpy
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # a quarter turn clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
    9: lambda a: a,  # not defined
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_decode_applies_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(encoded(Image.fromarray(COLOR), kind, exif=exif))
    assert np.array_equal(pixels, UPRIGHT[orientation](COLOR))


def test_decode_survives_damaged_exif():
    data = encoded(Image.fromarray(COLOR), exif=b"Exif\0\0II*\0garbage garbage garbage")
    assert np.array_equal(decoded(data), COLOR)


# -- decode_image: damaged files


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_decode_refuses_truncated(kind, share):
    data = encoded(photo(), kind)
    decode_image(data)
    with pytest.raises(ImageRefused):
        decode_image(data[: int(len(data) * share)])


def test_decode_names_the_reason():
    with pytest.raises(ImageRefused, match="empty"):
        decode_image(b"")
    with pytest.raises(ImageRefused, match="not an image"):
        decode_image(b"these are words, whatever the file is called")
    with pytest.raises(ImageRefused, match="truncated"):
        decode_image(encoded(photo(), "JPEG")[:-200])


def test_decode_refuses_decompression_bombs(monkeypatch):
    data = encoded(photo(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(ImageRefused, match="bomb"):
        decode_image(data)


def test_decode_never_runs_postscript():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"  # Pillow itself would take it
    with pytest.raises(ImageRefused, match="not an image"):
        decode_image(eps)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_decode_of_corrupted_bytes_gives_an_image_or_a_refusal(kind):
    data = np.frombuffer(encoded(photo(24, 16), kind), np.uint8)
    refused = 0
    for _ in range(100):
        corrupt = data.copy()
        corrupt[RNG.integers(0, len(data), 8)] = RNG.integers(0, 256, 8)
        try:
            assert decode_image(corrupt.tobytes()).mode in ("L", "RGB")
        except ImageRefused as refusal:
            refused += 1
            assert " at 0x" not in str(refusal)  # reasons must not change from run to run
    assert refused > 0


# -- make_square


def test_center_crop_takes_the_middle():
    wide = make_square(Image.fromarray(COLOR), transform="center-crop")
    assert np.array_equal(np.asarray(wide), COLOR[:, 1:7])
    tall = make_square(Image.fromarray(COLOR.swapaxes(0, 1).copy()), transform="center-crop")
    assert np.array_equal(np.asarray(tall), COLOR[:, 1:7].swapaxes(0, 1))


def test_center_crop_sees_nothing_outside_the_square():
    pixels = np.zeros((16, 48), np.uint8)
    pixels[:, :16] = pixels[:, 32:] = 255
    assert np.asarray(make_square(Image.fromarray(pixels), 8)).max() == 0


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (64, 2), (100, 1)])
def test_pad_can_be_undone(size):
    image = photo(*size)
    padded = make_square(image, 64, "pad", pad_color=(9, 8, 7))
    box = content_box(*size, 64)
    content = padded.crop(box)
    expected = image.resize(content.size, Image.Resampling.LANCZOS)
    assert padded.size == (64, 64) and 64 in content.size
    assert np.array_equal(np.asarray(content), np.asarray(expected))
    outside = np.ones((64, 64), bool)
    outside[box.top : box.bottom, box.left : box.right] = False
    assert (np.asarray(padded)[outside] == [9, 8, 7]).all() and outside.any()


def test_pad_without_resolution_keeps_every_pixel():
    padded = make_square(Image.fromarray(GREY), transform="pad")
    assert padded.size == (9, 9) and padded.mode == "L"
    assert np.array_equal(np.asarray(padded)[1:7], GREY)
    assert np.asarray(make_square(Image.fromarray(GREY), transform="pad", pad_color=(5, 5, 5)))[0, 0] == 5
    colored = make_square(Image.fromarray(GREY), transform="pad", pad_color=(255, 0, 0))
    assert colored.mode == "RGB" and np.asarray(colored)[0, 0].tolist() == [255, 0, 0]


def test_fit_stretches():
    pixels = np.repeat(np.array([[0, 255]], np.uint8), 4, axis=1).repeat(4, axis=0)  # 4 rows: left black, right white
    fitted = np.asarray(make_square(Image.fromarray(pixels), 4, "fit", "box"))
    assert (fitted == [0, 0, 255, 255]).all()


def test_transforms_refuse_what_is_not_square():
    for transform in ("none", "fit"):
        with pytest.raises(ImageRefused, match="9x6 is not square"):
            make_square(Image.fromarray(COLOR), transform=transform)


@pytest.mark.parametrize("transform", images.TRANSFORMS)
@pytest.mark.parametrize("resize_filter", images.FILTERS)
def test_image_of_the_right_size_keeps_its_pixels(transform, resize_filter):
    image = photo(16, 16)
    assert np.array_equal(np.asarray(make_square(image, 16, transform, resize_filter)), np.asarray(image))


@pytest.mark.parametrize("resize_filter", images.FILTERS)
def test_shrinking_is_antialiased(resize_filter):
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = np.asarray(make_square(Image.fromarray(board), 8, resize_filter=resize_filter)).astype(int)
    assert np.abs(small - 127).max() <= 6


def test_is_grey():
    grey = np.dstack([GREY] * 3)
    assert is_grey(Image.fromarray(GREY)) and is_grey(Image.fromarray(grey))
    for channel in range(3):
        tinted = grey.copy()
        tinted[3, 4, channel] ^= 1
        assert not is_grey(Image.fromarray(tinted))


# -- load_image and read_file


def test_load_image_from_path_and_bytes(tmp_path):
    path = tmp_path / "größe ☃.PNG"
    path.write_bytes(encoded(Image.fromarray(COLOR)))
    pixels = load_image(path, transform="pad")
    assert pixels.shape == (3, 9, 9) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert np.array_equal(pixels[:, 1:7], COLOR.transpose(2, 0, 1))
    assert np.array_equal(load_image(path.read_bytes(), transform="pad"), pixels)
    assert load_image(path, resolution=4, channels=1).shape == (1, 4, 4)
    assert np.array_equal(load_image(encoded(Image.fromarray(GREY)), channels=3, transform="pad")[2, 1:7], GREY)


def test_load_image_errors_name_file_and_reason(tmp_path):
    path = tmp_path / "cat.jpg"
    with pytest.raises(UserError, match=r"cat\.jpg: no such file"):
        load_image(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cat\.jpg: the file is empty"):
        load_image(path)
    path.write_bytes(encoded(photo(), "JPEG")[:-100])
    with pytest.raises(UserError, match=r"cat\.jpg: damaged or truncated"):
        load_image(str(path))
    with pytest.raises(UserError, match="image of 5 bytes: not an image"):
        load_image(b"hello")
    with pytest.raises(ValueError, match="channels=4; expected 1 or 3"):
        load_image(path, channels=4)


def test_read_file_refuses_what_is_no_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(ImageRefused, match="not a regular file"):
            images.read_file(tmp_path / name)
    (tmp_path / "link.png").symlink_to("nowhere.png")
    with pytest.raises(ImageRefused, match="broken link"):
        images.read_file(tmp_path / "link.png")
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    (tmp_path / "large.png").write_bytes(bytes(11))
    with pytest.raises(ImageRefused, match="11 bytes; at most 10"):
        images.read_file(tmp_path / "large.png")


def test_image_extensions():
    endings = images.image_extensions()
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"} <= endings
    assert not endings & {".txt", ".json", ".pdf", ".eps", ".ps", ".mpg", ".h5", ".zip", ""}


def test_encode_png_is_lossless():
    for pixels in (COLOR, GREY):
        data = images.encode_png(Image.fromarray(pixels))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
