"""Bilinear lookup: values against a slow definition, and derivatives of every order."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from torch_utils.ops.grid_sample import PADDING_MODES, grid_sample

MODES = [(padding, align) for padding in PADDING_MODES for align in (False, True)]
NEEDS_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]


def points(device="cpu", dtype=torch.float64):
    """[2, 4, 5, 2], inside and outside of the image, never on a pixel's centre."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(2, 4, 5, 2, generator=generator, dtype=torch.float64) * 3 - 1.5).to(device, dtype)


def images(device="cpu", dtype=torch.float64):
    """[2, 2, 3, 6]"""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 3, 6, generator=generator, dtype=torch.float64).to(device, dtype)


def slow_lookup(image, grid, padding_mode, align_corners):
    """One point at a time, from the definition: four pixels, weighted by how near they are."""
    count, channels, height, width = image.shape
    result = torch.zeros(count, channels, *grid.shape[1:3], dtype=image.dtype)

    def position(value, size):
        at = (value + 1) / 2 * (size - 1) if align_corners else ((value + 1) * size - 1) / 2
        low, high = (0, size - 1) if align_corners else (-0.5, size - 0.5)
        if padding_mode == "reflection":
            while not low <= at <= high:
                at = 2 * low - at if at < low else 2 * high - at
        return at if padding_mode == "zeros" else min(max(at, 0), size - 1)

    for n in range(count):
        for row in range(grid.shape[1]):
            for column in range(grid.shape[2]):
                x, y = position(float(grid[n, row, column, 0]), width), position(float(grid[n, row, column, 1]), height)
                for i in (math.floor(x), math.floor(x) + 1):
                    for j in (math.floor(y), math.floor(y) + 1):
                        if 0 <= i < width and 0 <= j < height:
                            result[n, :, row, column] += image[n, :, j, i] * (1 - abs(x - i)) * (1 - abs(y - j))
    return result


@pytest.mark.parametrize(("padding_mode", "align_corners"), MODES)
def test_grid_sample_equals_definition(padding_mode, align_corners):
    actual = grid_sample(images(), points(), padding_mode, align_corners)
    assert torch.allclose(actual, slow_lookup(images(), points(), padding_mode, align_corners), rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("padding_mode", "align_corners"), MODES)
def test_derivatives_of_first_and_second_order_equal_finite_differences(padding_mode, align_corners, device):
    image, grid = images(device).requires_grad_(), points(device)

    def curved(x):  # a lookup alone is linear: its second derivative would be zero
        return grid_sample(x.square(), grid, padding_mode, align_corners).sin()

    # On CUDA the gradient is summed by atomic additions, in no fixed order.
    assert gradcheck(curved, image, nondet_tol=1e-12)
    assert gradgradcheck(curved, image, nondet_tol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_equals_that_of_torch(device):
    image, grid = images(device, torch.float32).requires_grad_(), points(device, torch.float32)
    values = torch.randn(2, 2, 4, 5, device=device)
    (ours,) = torch.autograd.grad(grid_sample(image, grid), image, values)
    (theirs,) = torch.autograd.grad(functional.grid_sample(image, grid, align_corners=False), image, values)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert ours.dtype == torch.float32 and ours.is_contiguous()


def test_gradient_of_the_gradient_is_the_lookup_again():
    image, grid = images().requires_grad_(), points()
    values = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    (spread,) = torch.autograd.grad(grid_sample(image, grid), image, values, create_graph=True)
    other = torch.randn_like(spread)
    (back,) = torch.autograd.grad(spread, values, other, create_graph=True)
    assert torch.equal(back, grid_sample(other, grid))


def test_only_what_is_asked_for_is_differentiated():
    grid = points()
    plain = grid_sample(images(), grid)
    assert not plain.requires_grad
    with torch.no_grad():
        assert not grid_sample(images().requires_grad_(), grid).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 4)}, r"image: expected floating-point \[N, C, H, W\], got torch.float32 \[3, 4\]"),
        ({"image": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, "image: expected floating-point .* got torch.uint8"),
        ({"grid": torch.zeros(3, 4, 4, 2)}, r"grid: expected \[2, height, width, 2\], got \[3, 4, 4, 2\]"),
        ({"grid": torch.zeros(2, 4, 4, 3)}, r"grid: expected \[2, height, width, 2\]"),
        ({"grid": torch.zeros(2, 4, 4, 2, dtype=torch.float64)}, "grid: is torch.float64, the image torch.float32"),
        ({"grid": torch.zeros(2, 4, 4, 2, requires_grad=True)}, r"grid: wants a gradient.*detach"),
        ({"padding_mode": "mirror"}, "padding_mode: 'mirror' is not one of zeros, border, reflection"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"image": torch.zeros(2, 1, 4, 4), "grid": torch.zeros(2, 4, 4, 2)} | change
    with pytest.raises(ValueError, match=message):
        grid_sample(**arguments)
