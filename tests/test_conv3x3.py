"""3x3 convolutions by minimal filtering, against torch's."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import conv3x3_native
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.conv3x3_native import conv3x3, fits


@pytest.fixture(autouse=True)
def _native():
    custom_ops.set_mode("native")
    torch.manual_seed(0)
    try:
        custom_ops.library("cpu", must=True)
        yield
    except custom_ops.BuildError as error:
        pytest.skip(f"no native ops: {error}")
    finally:
        custom_ops.set_mode("ref")


def assert_near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def plain(x, w, flip):
    return functional.conv2d(x, w.flip(2, 3) if flip else w, padding=1)


SHAPES = [(4, 32, 40, 16, 16), (1, 64, 32, 33, 50), (70, 32, 32, 2, 3), (2, 40, 48, 61, 14)]  # N, in, out, H, W


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_result_and_gradients_of_both_orders_equal_torchs(shape, flip, layout):
    num, channels, out, height, width = shape
    x, w = torch.randn(num, channels, height, width), torch.randn(out, channels, 3, 3)
    assert fits(x, w)
    dy, v = torch.randn(num, out, height, width).to(memory_format=layout), torch.randn(x.shape)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        results = []
        for convolve, work in ((plain, torch.float64), (conv3x3, dtype)):
            own = x.to(work).to(memory_format=layout).requires_grad_(), w.to(work).requires_grad_()
            y = convolve(*own, flip)
            slope = dy.to(work).requires_grad_()
            first = torch.autograd.grad(y, own, slope, create_graph=True)
            sums = (first[0] * v.to(work)).sum() + first[1].square().sum()
            results.append([y, *first, *torch.autograd.grad(sums, [*own, slope])])
        for exact, found in zip(*results, strict=True):
            assert_near(found.double(), exact, tolerance)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_right():
    x = torch.randn(1, 32, 30, 29, dtype=torch.float64, requires_grad=True)
    w = torch.randn(32, 32, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, w: conv3x3(x, w, True), (x, w), fast_mode=True)
    assert gradgradcheck(lambda x, w: conv3x3(x, w, False), (x, w), fast_mode=True)


def test_rounding_is_that_of_a_plain_convolution():
    x, w = torch.randn(2, 256, 32, 32), torch.randn(32, 256, 3, 3)
    exact = functional.conv2d(x.double(), w.double(), padding=1)
    error, plains = ((y - exact).square().mean() for y in (conv3x3(x, w, False), functional.conv2d(x, w, padding=1)))
    assert error < 16 * plains  # of squares


def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch):
    computed, apply = [], conv3x3_native._WeightGradient.apply
    monkeypatch.setattr(conv3x3_native._WeightGradient, "apply", lambda *inputs: computed.append("w") or apply(*inputs))
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    leaf = torch.randn(32, 32, 3, 3, requires_grad=True)
    for w in (leaf, leaf * 2):
        y = conv3x3(x, w, False).sum()
        torch.autograd.grad(y, x, retain_graph=True)
        assert computed == []
        torch.autograd.grad(y, w, retain_graph=True)
        assert computed.pop() == "w"
        y.backward(retain_graph=True)
        assert computed.pop() == "w"
    assert conv3x3(x, leaf.detach(), False).requires_grad


@pytest.mark.parametrize(
    ("x", "w"),
    [
        (torch.zeros(4, 24, 16, 16), torch.zeros(32, 24, 3, 3)),  # few channels
        (torch.zeros(4, 36, 16, 16), torch.zeros(32, 36, 3, 3)),  # no whole vectors of channels
        (torch.zeros(3, 32, 16, 16), torch.zeros(32, 32, 3, 3)),  # few tiles
        (torch.zeros(4, 32, 16, 16), torch.zeros(32, 32, 1, 3)),
        (torch.zeros(4, 32, 16, 16).bfloat16(), torch.zeros(32, 32, 3, 3).bfloat16()),
        (torch.zeros(4, 32, 16, 16, device="meta"), torch.zeros(32, 32, 3, 3, device="meta")),
    ],
)
def test_others_are_left_to_torch(x, w):
    assert not fits(x, w)


def test_the_reference_and_autocast_are_left_to_torch():
    x, w = torch.zeros(4, 32, 16, 16), torch.zeros(32, 32, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(x, w)
    custom_ops.set_mode("ref")
    assert not fits(x, w)


def test_conv2d_resample_uses_it_where_nothing_is_resampled(monkeypatch):
    x, w, f = torch.randn(4, 32, 16, 16), torch.randn(32, 32, 3, 3), torch.ones(2, 2) / 4
    convolutions = [{"padding": 1}, {"padding": 1, "flip_weight": False}, {"padding": [1, 2, 1, 3]}]
    others = [{"padding": 0}, {"padding": 1, "up": 2, "f": f}, {"padding": 1, "down": 2, "f": f}]
    native = [conv2d_resample(x, w, **options) for options in convolutions + others]
    seen = []
    monkeypatch.setattr("torch_utils.ops.conv2d_resample.fits", lambda x, w: seen.append(x.shape) or False)
    for options, y in zip(convolutions + others, native, strict=True):
        assert_near(y, conv2d_resample(x, w, **options), 1e-5)
        assert (options in convolutions) == bool(seen)
        seen.clear()


def test_threads_change_nothing_but_the_last_bits():
    x, w = torch.randn(2, 64, 60, 60), torch.randn(64, 64, 3, 3)
    one = conv3x3(x, w, False)
    torch.set_num_threads(3)
    try:
        assert_near(conv3x3(x, w, False), one, 1e-6)
    finally:
        torch.set_num_threads(1)
