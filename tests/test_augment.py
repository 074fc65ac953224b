"""Each transformation of the augmentation pipe against a slow, obvious one, and how their parameters are drawn."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from scipy.spatial.transform import Rotation

from training.augment.blit import Blit, draw_blit, turn
from training.augment.borders import move, reflect_pad
from training.augment.color import Color, color_map, draw_color, recolor
from training.augment.corruption import add_noise, cut_out, draw_cutout, draw_noise
from training.augment.filtering import POWER, amplify, balance, draw_gains
from training.augment.geometry import CENTRE, Geometry, draw_geometry, inverse_map, warp
from training.augment.wavelets import SYM2, SYM6, octave_bands, unit_sum

DRAWS = 40_000
LOWPASS = unit_sum(SYM6).double()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_images(count=2, channels=3, side=8):
    return torch.randn(count, channels, side, side, dtype=torch.float64)


def assert_share(hits, expected):
    """A share of independent hits, within 4 standard deviations of what is expected."""
    tolerance = 4 * math.sqrt(expected * (1 - expected) / hits.numel())
    assert abs(float(hits.double().mean()) - expected) < tolerance


def assert_drawn_from(values, distribution):
    assert scipy.stats.kstest(values.double().numpy(), distribution.cdf).pvalue > 0.01


def lognormal(octaves):
    return scipy.stats.lognorm(s=octaves * math.log(2))


# Wavelets


@pytest.mark.parametrize(("taps", "vanishing_moments"), [(SYM2, 2), (SYM6, 6)])
def test_wavelet_is_orthonormal_to_its_shifts_and_has_its_vanishing_moments(taps, vanishing_moments):
    taps = np.array(taps)
    assert len(taps) == 2 * vanishing_moments
    assert taps.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    for shift in range(0, len(taps), 2):
        assert taps[shift:] @ taps[: len(taps) - shift] == pytest.approx(float(shift == 0), abs=1e-11)
    signs = (-1.0) ** np.arange(len(taps))
    for power in range(vanishing_moments):
        moment = (signs * np.arange(len(taps)) ** power) @ taps
        assert abs(moment) < 1e-9 * len(taps) ** power


@pytest.mark.parametrize(("taps", "order"), [(SYM2, 2), (SYM6, 6)])
def test_wavelet_is_the_most_symmetric_spectral_factor(taps, order):
    # Daubechies: H(z) = ((1 + 1/z) / 2)^order Q(z), |Q|^2 = sum of binomials in y = (2 - z - 1/z) / 4. Each root in y
    # is a pair z, 1/z of which Q takes one; a complex y is taken with its conjugate.
    in_y = np.roots([math.comb(order - 1 + k, k) for k in reversed(range(order))])
    chains = []
    for y in in_y[in_y.imag > -1e-9]:
        pair = np.roots([1, 4 * y - 2, 1])
        chains.append([[z] if abs(y.imag) < 1e-9 else [z, z.conj()] for z in pair])
    factors = []
    for choice in product(*chains):
        h = np.real(np.poly([-1] * order + [z for chain in choice for z in chain]))
        factors.append(h / h.sum() * math.sqrt(2))

    def phase_bend(h):
        omega = np.linspace(0.01, math.pi - 0.3, 400)
        phase = np.unwrap(np.angle(np.exp(-1j * np.outer(omega, np.arange(len(h)))) @ h))
        return np.abs(phase - np.polyval(np.polyfit(omega, phase, 1), omega)).max()

    nearest = min(factors, key=lambda h: np.abs(h - taps).max())
    assert np.abs(nearest - taps).max() < 1e-9
    assert phase_bend(nearest) == pytest.approx(min(map(phase_bend, factors)), rel=1e-6)


def test_octave_bands_are_products_of_the_wavelets_power_responses():
    bands = octave_bands().double().numpy()
    omega = np.linspace(0, math.pi, 101)

    def low(w):
        return np.abs(np.exp(-1j * np.outer(w, np.arange(4))) @ np.array(SYM2)) ** 2 / 2

    responses = np.exp(-1j * np.outer(omega, np.arange(43) - 21)) @ bands.T
    l1, l2, l4 = low(omega), low(2 * omega), low(4 * omega)
    expected = [l1 * l2 * l4, l1 * l2 * (1 - l4), l1 * (1 - l2), 1 - l1]
    assert np.abs(responses.T - expected).max() < 1e-6
    # Each band is the strongest one in the middle of its octave.
    middles = np.array([1 / 16, 3 / 16, 3 / 8, 3 / 4]) * math.pi
    strength = np.abs(np.exp(-1j * np.outer(middles, np.arange(43) - 21)) @ bands.T)
    assert strength.argmax(1).tolist() == [0, 1, 2, 3]


def test_octave_bands_add_up_to_nothing_done():
    assert torch.allclose(octave_bands().sum(0), torch.eye(43)[21], rtol=0, atol=1e-6)
    assert torch.equal(octave_bands(), octave_bands().flip(1))


# Borders


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 1), (0, 9), (40, 0), (21, 33)])
def test_reflect_pad_equals_numpy(before, after):
    x = random_images(side=8)[:, :, :5]
    assert np.array_equal(
        reflect_pad(x, 2, before, after), np.pad(x, [(0, 0)] * 2 + [(before, after), (0, 0)], "reflect")
    )
    assert np.array_equal(reflect_pad(x, 3, before, after), np.pad(x, [(0, 0)] * 3 + [(before, after)], "reflect"))


@pytest.mark.parametrize(("border", "mode"), [("reflect", "reflect"), ("zeros", "constant")])
def test_move_equals_cutting_from_a_padded_image(border, mode):
    x, shifts = random_images(4, 2, 8), torch.tensor([[0, 0], [3, -2], [-7, 7], [0, 1]])
    moved = move(x, shifts, border)
    for image, (right, down), result in zip(x.numpy(), shifts.tolist(), moved.numpy(), strict=True):
        padded = np.pad(image, [(0, 0), (7, 7), (7, 7)], mode)
        assert np.array_equal(result, padded[:, 7 - down : 15 - down, 7 - right : 15 - right])


# Pixel blitting


def test_turn_equals_numpy():
    x = random_images(8)
    blit = Blit(torch.arange(8) >= 4, torch.arange(8) % 4, torch.zeros(8, 2))
    for n, result in enumerate(turn(x, blit).numpy()):
        mirrored = x[n].numpy()[:, :, ::-1] if n >= 4 else x[n].numpy()
        assert np.array_equal(result, np.rot90(mirrored, n % 4, axes=(1, 2)))


def test_blit_is_drawn_as_in_the_paper():
    blit = draw_blit(DRAWS, 64, torch.tensor(0.4))
    assert_share(blit.mirror, 0.2)
    for turns in (1, 2, 3):
        assert_share(blit.turns == turns, 0.1)
    x, y = blit.shift.unbind(1)
    assert x.abs().max() == y.abs().max() == 8
    for pixels in (-7, 3, 7):  # 1 of 16 each, and 8 half as often, for rounding
        assert_share(x == pixels, 0.4 / 16)
        assert_share(y == pixels, 0.4 / 16)
    assert_share(x.abs() == 8, 0.4 / 16)
    assert_share((x == 0) & (y == 0), 0.6 + 0.4 / 256)
    assert_share(blit.mirror & (blit.turns > 0), 0.2 * 0.3)  # drawn independently of each other


# Geometry


def some_geometry(count=5):
    generator = np.random.default_rng(3)
    values = {
        "scale": generator.uniform(0.7, 1.4, count),
        "before": generator.uniform(-3, 3, count),
        "stretch": generator.uniform(0.7, 1.4, count),
        "after": generator.uniform(-3, 3, count),
        "shift": generator.uniform(-0.3, 0.3, (count, 2)),
    }
    return Geometry(**{name: torch.tensor(value) for name, value in values.items()})


def slow_warp(image, matrix):
    """Reflected far out, zeros between pixels, convolved, looked up one by one, convolved, halved: the paper's way."""
    side, margin, taps = len(image), 64, np.array(SYM6)

    def along_both(x, kernel):
        for axis in (0, 1):
            x = np.apply_along_axis(np.convolve, axis, x, kernel)
        return x

    padded = np.pad(image, margin, "reflect")
    spaced = np.zeros([2 * len(padded)] * 2)
    spaced[::2, ::2] = padded
    dense = along_both(spaced, taps[::-1])
    first = 2 * margin + 11 - CENTRE  # where in `dense` the first pixel is centred
    size, middle = 2 * side + 10, (side - 1) / 2
    values = np.zeros((size, size))
    for row, column in product(range(size), repeat=2):
        target = (np.array([column, row]) - 11 + CENTRE) / 2 - middle
        x, y = (matrix @ np.append(target, 1) + middle) * 2 + first
        i, j = math.floor(x), math.floor(y)
        x, y = x - i, y - j
        upper = dense[j, i] * (1 - x) + dense[j, i + 1] * x
        lower = dense[j + 1, i] * (1 - x) + dense[j + 1, i + 1] * x
        values[row, column] = upper * (1 - y) + lower * y
    return along_both(values, taps)[11 : 2 * side + 11 : 2, 11 : 2 * side + 11 : 2]


def test_inverse_map_is_the_inverse_of_the_products_of_matrices():
    geometry, pixels, side = some_geometry(), torch.tensor([[3, -2], [0, 0], [-5, 1], [2, 2], [0, -4]]), 32
    inverse = inverse_map(geometry, pixels, side)

    def rotation(angle):
        return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])

    def translation(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])

    for n in range(5):
        scale, before, stretch, after = (
            float(values[n]) for values in (geometry.scale, geometry.before, geometry.stretch, geometry.after)
        )
        forward = translation(*pixels[n].tolist())
        forward = np.diag([scale, scale, 1]) @ forward
        forward = rotation(before) @ forward
        forward = np.diag([stretch, 1 / stretch, 1]) @ forward
        forward = rotation(after) @ forward
        forward = translation(*(geometry.shift[n] * side).tolist()) @ forward
        assert np.allclose(inverse[n], np.linalg.inv(forward)[:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [8, 13])
def test_warp_equals_the_papers_steps_one_pixel_at_a_time(side):
    x = random_images(5, 1, side)
    inverse = inverse_map(some_geometry(), torch.tensor([[0, 0], [2, -1], [0, 0], [25, 3], [0, 0]]), side)
    actual = warp(x, inverse, LOWPASS)
    for n in range(5):
        assert np.allclose(actual[n, 0], slow_warp(x[n, 0].numpy(), inverse[n].numpy()), rtol=0, atol=1e-6)


def test_warp_keeps_straight_lines_straight_and_where_they_belong():
    # Far from the border a ramp comes out as the same ramp, transformed: scale, angle and centre at once.
    side, geometry = 48, some_geometry()
    inverse = inverse_map(geometry, torch.tensor([[1, -2]] * 5), side)
    position = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    x, y = position.view(1, -1).expand(side, side), position.view(-1, 1).expand(side, side)
    result = warp(torch.stack([x, y])[None].expand(5, -1, -1, -1), inverse, LOWPASS)
    expected = torch.einsum("nij,jyx->niyx", inverse, torch.stack([x, y, torch.ones_like(x)]))
    inside = (expected.abs() < side / 2 - 8).all(1, keepdim=True).expand_as(expected)
    assert inside.flatten(1).sum(1).min() > 50
    assert torch.allclose(result[inside], expected[inside], rtol=0, atol=1e-4)


def test_warp_agrees_with_cubic_interpolation_on_smooth_images():
    side, geometry = 32, some_geometry()
    x = torch.from_numpy(scipy.ndimage.gaussian_filter(random_images(5, 1, side).numpy(), (0, 0, 3, 3), mode="mirror"))
    x = x / x.std()
    inverse = inverse_map(geometry, torch.zeros(5, 2), side)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side))) - (side - 1) / 2
    result = warp(x, inverse, LOWPASS)
    for n in range(5):
        at = np.einsum("ij,jyx->iyx", inverse[n, :, :2].numpy(), grid) + inverse[n, :, 2].numpy()[:, None, None]
        at = at + (side - 1) / 2
        cubic = scipy.ndimage.map_coordinates(x[n, 0].numpy(), at[::-1], order=3, mode="mirror")
        assert np.abs(result[n, 0].numpy() - cubic).max() < 0.08


def test_warp_moves_by_whole_pixels_as_blitting_does():
    x, pixels = random_images(3, 3, 8), torch.tensor([[1, 0], [-3, 2], [7, 7]])
    still = Geometry(torch.ones(3), torch.zeros(3), torch.ones(3), torch.zeros(3), torch.zeros(3, 2))
    moved = warp(x, inverse_map(still, pixels, 8), LOWPASS)
    assert torch.allclose(moved, move(x, pixels, "reflect"), rtol=0, atol=1e-6)


def test_warp_keeps_energy_on_whole_and_is_linear():
    # An orthogonal pair of filters loses nothing; bilinear lookup between the samples costs a little.
    x = random_images(4, 1, 32)
    still = Geometry(torch.ones(4), torch.zeros(4), torch.ones(4), torch.zeros(4), torch.full((4, 2), 0.5 / 32))
    half = warp(x, inverse_map(still, torch.zeros(4, 2), 32), LOWPASS)
    assert 0.5 < half.square().mean() / x.square().mean() < 1
    inverse = inverse_map(some_geometry(4), torch.zeros(4, 2), 32)
    once, twice = warp(x, inverse, LOWPASS), warp(2 * x + x.flip(0), inverse, LOWPASS)
    assert torch.allclose(twice, 2 * once + warp(x.flip(0), inverse, LOWPASS), rtol=0, atol=1e-9)


def test_warp_leaves_images_alone_whose_map_is_the_identity():
    x = random_images(4).float()
    inverse = torch.eye(2, 3).repeat(4, 1, 1)
    inverse[1, 0, 2] = 0.5
    result = warp(x, inverse, LOWPASS.float())
    assert [torch.equal(a, b) for a, b in zip(result, x, strict=True)] == [True, False, True, True]


def test_geometry_is_drawn_as_in_the_paper():
    p = 0.36
    geometry = draw_geometry(DRAWS, torch.tensor(p))
    for values in (geometry.scale, geometry.stretch):
        assert_share(values != 1, p)
        assert_drawn_from(values[values != 1], lognormal(0.2))
    for angles in (geometry.before, geometry.after):
        assert_share(angles != 0, 1 - math.sqrt(1 - p))
        assert_drawn_from(angles[angles != 0], scipy.stats.uniform(-math.pi, 2 * math.pi))
    assert_share((geometry.before != 0) | (geometry.after != 0), p)
    moved = geometry.shift[geometry.shift[:, 0] != 0]
    assert_share(geometry.shift[:, 0] != 0, p)
    assert_drawn_from(moved[:, 0], scipy.stats.norm(0, 0.125))
    assert_drawn_from(moved[:, 1], scipy.stats.norm(0, 0.125))
    assert abs(np.corrcoef(moved.numpy().T)[0, 1]) < 0.04
    assert_share((geometry.scale != 1) & (geometry.stretch != 1) & (geometry.before != 0), p * p * 0.2)


def test_probability_above_one_rotates_always():
    assert (draw_geometry(100, torch.tensor(1.5)).before != 0).all()


# Colour


def some_color():
    return Color(
        brightness=torch.tensor([0.3, 0, 0, 0, 0, -0.2]),
        contrast=torch.tensor([1, 1.7, 1, 1, 1, 0.6]),
        luma_flip=torch.tensor([False, False, True, False, False, True]),
        hue=torch.tensor([0, 0, 0, 1.2, 0, -2.1]),
        saturation=torch.tensor([1, 1, 1, 1, 2.3, 0.4]),
    )


def test_color_map_is_the_product_of_the_papers_matrices():
    color = some_color()
    axis = np.ones(3) / math.sqrt(3)
    v = np.append(axis, 0)
    for n, matrix in enumerate(color_map(color)):
        brightness, contrast, hue, saturation = (
            float(values[n]) for values in (color.brightness, color.contrast, color.hue, color.saturation)
        )
        expected = np.eye(4)
        expected[:3, 3] = brightness
        expected = np.diag([contrast, contrast, contrast, 1]) @ expected
        expected = (np.eye(4) - 2 * np.outer(v, v) * float(color.luma_flip[n])) @ expected
        turned = np.eye(4)
        turned[:3, :3] = Rotation.from_rotvec(axis * hue).as_matrix()
        expected = turned @ expected
        luma = np.outer(v, v)
        faded = luma + (np.eye(4) - luma) * saturation
        assert np.allclose(matrix, (faded @ expected)[:3], rtol=0, atol=1e-6)


def test_recolor_maps_every_pixel():
    x, matrix = random_images(6), color_map(some_color()).double()
    homogeneous = torch.cat([x, torch.ones(6, 1, 8, 8)], dim=1)
    expected = torch.einsum("nij,njyx->niyx", matrix, homogeneous)
    assert torch.allclose(recolor(x, matrix), expected, rtol=0, atol=1e-12)


def test_recolor_treats_grey_as_equal_red_green_and_blue():
    grey, matrix = random_images(6, 1), color_map(some_color())
    rgb = recolor(grey.expand(-1, 3, -1, -1), matrix)
    assert torch.allclose(recolor(grey, matrix).expand(-1, 3, -1, -1), rgb, rtol=0, atol=1e-6)
    # Of five transformations three can be seen in grey.
    assert torch.allclose(recolor(grey, matrix)[0], grey[0] + 0.3, rtol=0, atol=1e-6)
    assert torch.allclose(recolor(grey, matrix)[1], grey[1] * 1.7, rtol=0, atol=1e-6)
    assert torch.allclose(recolor(grey, matrix)[2], -grey[2], rtol=0, atol=1e-6)
    assert torch.allclose(recolor(grey, matrix)[3:5], grey[3:5], rtol=0, atol=1e-6)


def test_color_is_drawn_as_in_the_paper():
    color = draw_color(DRAWS, torch.tensor(0.3))
    assert_share(color.brightness != 0, 0.3)
    assert_drawn_from(color.brightness[color.brightness != 0], scipy.stats.norm(0, 0.2))
    assert_share(color.contrast != 1, 0.3)
    assert_drawn_from(color.contrast[color.contrast != 1], lognormal(0.5))
    assert_share(color.luma_flip, 0.15)
    assert_share(color.hue != 0, 0.3)
    assert_drawn_from(color.hue[color.hue != 0], scipy.stats.uniform(-math.pi, 2 * math.pi))
    assert_share(color.saturation != 1, 0.3)
    assert_drawn_from(color.saturation[color.saturation != 1], lognormal(1))
    assert_share((color.brightness != 0) & (color.hue != 0) & color.luma_flip, 0.3 * 0.3 * 0.15)


# Image-space filtering


@pytest.mark.parametrize("side", [8, 30])
def test_amplify_equals_convolution_of_a_padded_image(side):
    x, gains, bands = random_images(3, 2, side), torch.rand(3, 4) * 2, octave_bands().double()
    result = amplify(x, gains, bands)
    for n, channel in product(range(3), range(2)):
        kernel = gains[n].double().numpy() @ bands.numpy()
        expected = np.pad(x[n, channel].numpy(), 21, "reflect")
        for axis in (0, 1):
            expected = np.apply_along_axis(np.convolve, axis, expected, kernel, mode="valid")
        assert np.allclose(result[n, channel], expected, rtol=0, atol=1e-9)


def test_balance_keeps_the_expected_power_after_each_amplification():
    factors = torch.tensor([[1, 1, 1, 1], [3, 1, 1, 1], [1, 1, 0.25, 1], [3, 1, 0.25, 2.0]])
    expected = np.ones((4, 4))
    for row, band in product(range(4), range(4)):
        gain = np.ones(4)
        gain[band] = factors[row, band]
        expected[row] *= gain / np.sqrt((np.array([10, 1, 1, 1]) / 13 * gain**2).sum())
    gains = balance(factors)
    assert np.allclose(gains, expected, rtol=1e-6)
    assert (gains[0] == 1).all()
    assert torch.allclose((gains[1:3].square() * torch.tensor(POWER)).sum(1), torch.ones(2))


def test_amplifying_one_band_keeps_the_power_of_a_one_over_f_signal():
    # Along one axis: noise whose octaves have the powers 10 : 1 : 1 : 1, as the paper expects of images.
    length, edges = 4096, [0, 1 / 8, 1 / 4, 1 / 2, 1]
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal((64, length)))
    share = np.arange(spectrum.shape[1]) / (spectrum.shape[1] - 1)
    for power, low, high in zip(POWER, edges, edges[1:], strict=False):
        spectrum[:, (share >= low) & (share < high)] *= math.sqrt(power / (high - low))
    signal = np.fft.irfft(spectrum, length)
    signal /= signal.std()
    for band, factor in product(range(4), (0.4, 2.5)):
        factors = torch.ones(1, 4)
        factors[0, band] = factor
        kernel = (balance(factors) @ octave_bands()).numpy()[0]
        filtered = np.apply_along_axis(np.convolve, 1, signal, kernel, mode="valid")
        assert filtered.var() == pytest.approx(1, abs=0.2)  # the bands overlap, so not exactly
        unbalanced = np.apply_along_axis(np.convolve, 1, signal, (factors @ octave_bands()).numpy()[0], mode="valid")
        assert abs(filtered.var() - 1) < abs(unbalanced.var() - 1)


def test_gains_are_drawn_as_in_the_paper():
    p = 0.25
    gains = draw_gains(DRAWS, torch.tensor(p))
    assert_share((gains != 1).any(1), 1 - (1 - p) ** 4)
    # A band's factor is its gain relative to a band that got none: here band 0 against the last, half of either.
    ratio = (gains[:, 0] / gains[:, 3]).log2()
    assert_share(ratio.abs() > 1e-4, 1 - (1 - p) ** 2)
    both, one = p * p, 2 * p * (1 - p)
    assert float(ratio.double().square().mean()) == pytest.approx(2 * both + one, rel=0.05)  # octaves squared
    assert abs(float(ratio.double().mean())) < 0.02


# Corruptions


def test_noise_has_the_standard_deviation_asked_for():
    sigma = torch.tensor([0, 0.05, 0.3])
    x = torch.randn(3, 3, 64, 64)
    noise = add_noise(x, sigma) - x
    assert torch.equal(noise[0], torch.zeros_like(noise[0]))
    for n in (1, 2):
        assert_drawn_from(noise[n].flatten(), scipy.stats.norm(0, float(sigma[n])))
    assert abs(np.corrcoef(noise[1].flatten(1).numpy())[0, 1]) < 0.06  # a channel tells nothing of another


def test_noise_is_drawn_as_in_the_paper():
    sigma = draw_noise(DRAWS, torch.tensor(0.7))
    assert_share(sigma > 0, 0.7)
    assert_drawn_from(sigma[sigma > 0], scipy.stats.halfnorm(0, 0.1))


def test_cut_out_equals_painting_a_square():
    side = 10
    centres = torch.tensor([[0.5, 0.5], [0.0, 0.93], [0.31, 0.02], [0.5, 0.5]])
    x = torch.randn(4, 3, side, side)
    result = cut_out(x, centres, torch.tensor([True, True, True, False]))
    expected = x.clone()
    for n in range(3):
        for row, column in product(range(side), repeat=2):
            left, top = (round((float(c) - 0.25) * side) for c in centres[n])
            right, bottom = (round((float(c) + 0.25) * side) for c in centres[n])
            if left <= column < right and top <= row < bottom:
                expected[n, :, row, column] = 0
    assert torch.equal(result, expected)


def test_cutout_is_drawn_as_in_the_paper():
    centres, cut = draw_cutout(DRAWS, torch.tensor(0.15))
    assert_share(cut, 0.15)
    assert_drawn_from(centres[:, 0], scipy.stats.uniform())
    assert_drawn_from(centres[:, 1], scipy.stats.uniform())
