import io
import threading

import numpy as np
import PIL.Image
import pytest
import torch

from stylegan2_icgan.using.encoding import AHEAD, THREADS, encode, in_threads


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 7), (3, 1, 1), (1, 64, 64)])
def test_png_holds_every_pixel(shape: tuple[int, int, int]) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    data = encode(pixels, "png")
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.verify()  # checksums
    with PIL.Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L" if shape[0] == 1 else "RGB")
        assert np.array_equal(np.atleast_3d(np.asarray(image)), pixels.permute(1, 2, 0).numpy())
    assert encode(pixels.clone(), "png") == data


def test_png_of_a_smooth_image_is_small() -> None:
    ramp = torch.arange(128, dtype=torch.uint8).expand(3, 128, 128)
    assert len(encode(ramp, "png")) < 3 * 128 * 128 / 20


def test_threads_keep_the_order_and_a_limit_on_what_waits() -> None:
    made, may_go = [], threading.Event()

    def items():
        for number in range(2 * AHEAD):
            made.append(number)
            if len(made) > AHEAD:
                may_go.set()
            yield number

    def work(number: int) -> int:
        may_go.wait(30)
        return -number

    results = in_threads(work, items())
    assert next(results) == 0
    assert len(made) <= AHEAD + THREADS + 1
    assert list(results) == [-number for number in range(1, 2 * AHEAD)]
    assert made == list(range(2 * AHEAD))


def test_what_fails_in_a_thread_fails_outside() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, [1, 0, 1]))
