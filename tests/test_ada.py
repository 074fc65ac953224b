"""The pipe as a whole, its derivatives, the controller that moves p, and DiffAugment."""

import copy
import math

import pytest
import scipy.stats
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_utils.command_line import UserError
from training.augment import SPECS, AdaController, AugmentPipe, DiffAugment
from training.augment import controller as controller_module
from training.augment.blit import draw_blit, turn
from training.augment.borders import move
from training.augment.color import color_map, draw_color, recolor
from training.augment.corruption import add_noise, cut_out, draw_cutout, draw_noise
from training.augment.diffaugment import Tint, draw_tint, draw_translation, tint
from training.augment.filtering import amplify, draw_gains
from training.augment.geometry import Geometry, draw_geometry, inverse_map, warp
from training.augment.wavelets import SYM6, octave_bands, unit_sum

NEEDS_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def seeded(augment, seed=5):
    """The same draws at every call."""

    def call(images):
        torch.manual_seed(seed)
        return augment(images)

    return call


# The pipe


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pipe_leaves_images_alone_at_p_zero_bit_for_bit(spec, channels, dtype):
    x = torch.randn(4, channels, 9, 9, dtype=dtype)
    x[0] = -0.0
    result = AugmentPipe(spec)(x)
    assert result.dtype == dtype
    as_int = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(result.view(as_int), x.view(as_int))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (3, 17), (1, 32)])
def test_pipe_changes_images_at_p_one_and_stays_finite(spec, channels, side):
    x = torch.rand(16, channels, side, side) * 2 - 1
    result = AugmentPipe(spec, p=1)(x)
    assert result.shape == x.shape and result.isfinite().all()
    changed = (result != x).flatten(1).any(1)
    # A flip, turn or luma flip may be none, and a shift of an eighth of 8 pixels rounds to 0 for half of the images.
    assert changed.sum() >= 10
    assert len({image.numpy().tobytes() for image in result}) == 16  # all differ


@pytest.mark.parametrize("spec", ["blit", "geom", "color", "filter", "noise", "cutout"])
def test_pipe_of_one_group_does_only_what_its_name_says(spec):
    x, y = torch.randn(2, 32, 3, 16, 16).double()
    y = x + y * 0.1
    result = seeded(AugmentPipe(spec, p=1))(x)
    if spec == "blit":
        assert all(set(image.flatten().tolist()) <= set(x[n].flatten().tolist()) for n, image in enumerate(result))
    elif spec == "cutout":
        assert ((result == x) | (result == 0)).all()
        assert 0.1 < (result == 0).double().mean() < 0.25  # a quarter, less what hangs over the border
    elif spec == "noise":
        assert 0.05 < (result - x).std() < 0.2
    elif spec == "color":  # a constant image stays constant
        flat = torch.randn(32, 3, 1, 1).expand(-1, -1, 16, 16).contiguous()
        assert seeded(AugmentPipe(spec, p=1))(flat).flatten(2).std(2).max() < 1e-6
    else:  # a constant image stays what it is under geometry; under filters it gets one factor
        flat = seeded(AugmentPipe(spec, p=1))(torch.ones(32, 1, 16, 16))
        assert flat.flatten(1).std(1).max() < 1e-5
        assert (flat.mean([1, 2, 3]) - 1).abs().max() < 1e-5 if spec == "geom" else flat.std() > 0.01


@pytest.mark.parametrize("spec", ["blit", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"])
def test_pipe_draws_and_applies_its_groups_in_the_papers_order(spec):
    x, p = torch.randn(32, 3, 16, 16), torch.tensor(0.7)
    pipe = AugmentPipe(spec, p=0.7)
    result = seeded(pipe)(x)
    torch.manual_seed(5)
    blit = draw_blit(32, 16, p)
    assert blit.shift.any()
    expected = turn(x, blit)
    if spec == "blit":
        expected = move(expected, blit.shift, "reflect")
    else:
        expected = warp(expected, inverse_map(draw_geometry(32, p), blit.shift, 16), unit_sum(SYM6))
    for letter, step in (
        ("c", lambda images: recolor(images, color_map(draw_color(32, p)))),
        ("f", lambda images: amplify(images, draw_gains(32, p), octave_bands())),
        ("n", lambda images: add_noise(images, draw_noise(32, p))),
    ):
        expected = step(expected) if letter in spec else expected
    expected = cut_out(expected, *draw_cutout(32, p)) if spec.endswith("nc") else expected
    assert torch.equal(result, expected)


def test_pipe_touches_the_share_of_images_that_p_says():
    x, p = torch.randn(4000, 3, 8, 8), 0.1
    changed = (AugmentPipe("bgc", p=p)(x) != x).flatten(1).any(1).double()
    # Of flips and luma flips half do nothing, of turns a quarter, of shifts by at most an eighth of 8 pixels too.
    untouched = (1 - p / 2) ** 2 * (1 - p * 3 / 4) ** 2 * (1 - p) ** 8
    assert abs(float(changed.mean()) - (1 - untouched)) < 4 * math.sqrt(untouched * (1 - untouched) / 4000)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype, device):
    x = torch.randn(4, 3, 16, 16, device=device).to(dtype)
    pipe = seeded(AugmentPipe("bgcfnc", p=1).to(device))
    assert torch.equal(pipe(x), pipe(x.float()).to(dtype))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(pipe(x.float()), pipe(x.float()))
        inside = pipe(x.float())
    assert torch.equal(inside, pipe(x.float()))


def test_pipe_repeats_itself_from_the_seed_alone_and_uses_the_same_draws_at_every_p():
    x = torch.randn(8, 3, 16, 16)
    pipe = AugmentPipe("bgcfnc", p=0.5)
    assert torch.equal(seeded(pipe)(x), seeded(pipe)(x))
    assert not torch.equal(seeded(pipe, 1)(x), seeded(pipe, 2)(x))
    following = []
    for p in (0, 0.3, 1):
        seeded(AugmentPipe("bgcfnc", p=p))(x)
        following.append(torch.rand(4))
    assert torch.equal(following[0], following[1]) and torch.equal(following[0], following[2])


def test_pipe_takes_images_of_any_strides():
    x = torch.randn(4, 3, 16, 16)
    pipe = seeded(AugmentPipe("bgcfnc", p=1))
    expected = pipe(x)
    assert torch.allclose(pipe(x.to(memory_format=torch.channels_last)), expected, rtol=0, atol=1e-4)
    assert torch.allclose(pipe(x.transpose(2, 3).contiguous().transpose(2, 3)), expected, rtol=0, atol=1e-4)


def test_p_is_part_of_the_state_and_the_filters_are_not():
    pipe = AugmentPipe("bgcfnc", p=0.25)
    assert list(pipe.state_dict()) == ["p"]
    other = AugmentPipe("bgcfnc")
    other.load_state_dict(pipe.state_dict())
    assert float(other.p) == 0.25


def test_pipe_reads_no_number_from_the_device():
    # Tensors on the meta device have no values: whatever asks for one fails.
    pipe = AugmentPipe("bgcfnc", p=0.5).to("meta")
    controller = AdaController(pipe, interval=1)
    images = torch.zeros(4, 3, 16, 16, device="meta", requires_grad=True)
    result = pipe(images)
    (gradient,) = torch.autograd.grad(result.sum(), images, create_graph=True)
    gradient.square().sum().backward()
    controller.observe(result.mean([1, 2, 3]))
    controller.step(batch=4)
    assert result.device.type == "meta" and result.shape == images.shape


@pytest.mark.parametrize(
    "shape",
    [(2, 2, 16, 16), (2, 4, 16, 16), (3, 16, 16), (2, 3, 16, 12), (2, 3, 7, 7)],
)
@pytest.mark.parametrize("augment", [AugmentPipe("blit"), DiffAugment("translation")])
def test_images_of_another_shape_are_refused(augment, shape):
    with pytest.raises(
        ValueError,
        match=rf"images: expected floating-point \[N, 1 or 3, S, S\] with S >= 8, got torch\.float32 \[{shape[0]}, ",
    ):
        augment(torch.zeros(shape))


def test_bad_arguments_of_the_pipe_are_named():
    with pytest.raises(ValueError, match=r"images: expected floating-point .* got torch\.uint8"):
        AugmentPipe()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"spec: 'bgx' is not one of blit, geom, .*bgcfnc"):
        AugmentPipe("bgx")
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"p: .* is not a probability, a number from 0 to 1"):
            AugmentPipe(p=p)


# Derivatives


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", ["scale", "before", "stretch", "after", "shift", "pixels", "all"])
def test_warp_is_differentiable_twice(path, device):
    values = {"scale": 0.8, "before": 0.7, "stretch": 1.3, "after": -2.0, "shift": [0.1, -0.17]}
    neutral = {"scale": 1.0, "before": 0.0, "stretch": 1.0, "after": 0.0, "shift": [0.0, 0.0]}
    geometry = Geometry(
        **{
            name: torch.tensor([values[name] if path in (name, "all") else neutral[name]], dtype=torch.float64)
            for name in values
        }
    )
    pixels = torch.tensor([[1, -1]] if path in ("pixels", "all") else [[0, 0]])
    inverse = inverse_map(geometry, pixels, 8).to(device)
    assert not torch.equal(inverse[0].cpu(), torch.eye(2, 3))
    lowpass = unit_sum(SYM6).to(device)
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, device=device, requires_grad=True)

    def curved(x):  # a warp alone is linear: its second derivative would be zero
        return warp(x.square(), inverse, lowpass).sin()

    assert gradcheck(curved, x, fast_mode=True, nondet_tol=1e-9)
    assert gradgradcheck(curved, x, fast_mode=True, nondet_tol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pipe_is_differentiable_twice(spec, channels, device):
    pipe = seeded(AugmentPipe(spec, p=0.8).to(device))
    x = torch.randn(3, channels, 8, 8, dtype=torch.float64, device=device, requires_grad=True)

    def curved(x):
        return pipe(x.square()).sin()

    assert gradcheck(curved, x, fast_mode=True, nondet_tol=1e-9)
    assert gradgradcheck(curved, x, fast_mode=True, nondet_tol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_r1_through_the_pipe_equals_finite_differences(device):
    pipe = seeded(AugmentPipe("bgcfnc", p=0.9).to(device))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, device=device)
    critic = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(144, 1)
    )
    critic.double().to(device)

    def r1(network):
        real = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(pipe(real)).sum(), real, create_graph=True)
        return gradient.square().sum([1, 2, 3]).mean()

    # The gradient that is penalised, by differences along random directions.
    real = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(pipe(real)).sum(), real)
    for _ in range(5):
        direction = torch.randn_like(x)
        with torch.no_grad():
            rise = (critic(pipe(x + 1e-5 * direction)) - critic(pipe(x - 1e-5 * direction))).sum() / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(float(rise), rel=1e-6)

    # And its gradient in D's parameters, which is what the regulariser trains with.
    slopes = torch.autograd.grad(r1(critic), list(critic.parameters()), allow_unused=True)
    for position, slope in enumerate(slopes):
        if slope is None:  # the last bias: the gradient of the logits does not know it
            assert position == 3
            continue
        index = int(slope.abs().argmax())
        up, down = copy.deepcopy(critic), copy.deepcopy(critic)
        with torch.no_grad():
            list(up.parameters())[position].view(-1)[index] += 1e-5
            list(down.parameters())[position].view(-1)[index] -= 1e-5
        expected = (r1(up) - r1(down)).detach() / 2e-5
        assert float(slope.flatten()[index]) == pytest.approx(float(expected), rel=1e-5, abs=1e-10)


# The controller


def signs(positive, negative):
    """Logits of D on real images."""
    return torch.cat([torch.rand(positive) + 0.1, -torch.rand(negative) - 0.1])


def test_p_rises_and_falls_by_a_fixed_amount_every_interval():
    pipe = AugmentPipe()
    controller = AdaController(pipe, target=0.6, interval=4, ada_kimg=1)
    for step in range(8):
        controller.observe(signs(14, 2))  # r_t = 0.75
        controller.step(batch=16)
        assert float(pipe.p) == pytest.approx((step + 1) // 4 * 4 * 16 / 1000)
    assert float(controller.r_t) == 0.75
    for _ in range(4):
        controller.observe(signs(9, 7))  # r_t = 0.125
        controller.step(batch=16)
    assert float(pipe.p) == pytest.approx(0.064)
    assert float(controller.r_t) == 0.125


def test_p_can_go_from_zero_to_one_in_ada_kimg_and_stays_in_between():
    pipe = AugmentPipe()
    controller = AdaController(pipe, ada_kimg=0.5)
    images = 0
    while float(pipe.p) < 1 and images < 1000:
        controller.observe(signs(25, 0))
        controller.step(batch=25)
        images += 25
    assert images == 500
    for expected in (1, 1, 1, 1):
        controller.observe(signs(25, 0))
        controller.step(batch=25)
        assert float(pipe.p) == expected
    for _ in range(4 * 10):
        controller.observe(signs(0, 25))
        controller.step(batch=25)
    assert float(pipe.p) == 0


def test_the_mean_sign_is_over_all_that_was_observed_since_the_last_adjustment():
    controller = AdaController(AugmentPipe(), interval=2)
    controller.observe(signs(3, 1).view(-1, 1).half())
    controller.observe(torch.tensor([0.0, 0.0]))  # D can't tell: neither sign
    controller.step(batch=6)
    controller.observe(signs(0, 4))
    controller.step(batch=4)
    assert float(controller.r_t) == pytest.approx((3 - 1 - 4) / 10)


def test_p_stays_at_the_target_and_without_observations():
    pipe = AugmentPipe(p=0.5)
    controller = AdaController(pipe, target=0.5, interval=1, ada_kimg=1)
    controller.observe(signs(3, 1))  # r_t = 0.5
    controller.step(batch=4)
    controller.step(batch=4)
    assert float(pipe.p) == 0.5


def test_fixed_p_is_only_watched():
    pipe = AugmentPipe(p=0.3)
    controller = AdaController(pipe, target=None, interval=1, ada_kimg=1)
    controller.observe(signs(8, 0))
    controller.step(batch=8)
    assert torch.equal(pipe.p, torch.tensor(0.3))
    assert float(controller.r_t) == 1


def test_processes_that_add_up_their_signs_move_p_as_one_process_does(monkeypatch):
    logits = [signs(8, 2), signs(3, 1)]  # r_t = 4/7: neither 0.6 nor the mean of 0.6 and 0.5
    single = AdaController(AugmentPipe(), target=0.56, interval=1, ada_kimg=1)
    single.observe(torch.cat(logits))
    single.step(batch=14)

    several = [AdaController(AugmentPipe(), target=0.56, interval=1, ada_kimg=1) for _ in logits]
    for controller, part in zip(several, logits, strict=True):
        controller.observe(part)
    totals = sum(controller.totals for controller in several)
    monkeypatch.setattr(controller_module, "total", lambda mine: mine.copy_(totals))
    for controller in several:
        controller.step(batch=14)
        assert torch.equal(controller.pipe.p, single.pipe.p)
        assert torch.equal(controller.r_t, single.r_t)
    assert float(single.pipe.p) == pytest.approx(0.014)


def test_controller_continues_from_its_state_in_the_middle_of_an_interval(tmp_path):
    batches = [signs(5, 1), signs(2, 4), signs(6, 0), signs(4, 2), signs(6, 0), signs(6, 0)]

    def run(controller, parts):
        for part in parts:
            controller.observe(part)
            controller.step(batch=6)

    whole = AdaController(AugmentPipe(), target=0.4, interval=3, ada_kimg=1)
    run(whole, batches)
    first = AdaController(AugmentPipe(), target=0.4, interval=3, ada_kimg=1)
    run(first, batches[:4])
    torch.save({"pipe": first.pipe.state_dict(), "ada": first.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second = AdaController(AugmentPipe(), target=0.4, interval=3, ada_kimg=1)
    second.pipe.load_state_dict(saved["pipe"])
    second.load_state_dict(saved["ada"])
    run(second, batches[4:])
    assert torch.equal(second.pipe.p, whole.pipe.p) and torch.equal(second.r_t, whole.r_t)
    assert float(whole.pipe.p) == pytest.approx(0.036)


def test_controller_needs_no_gradient_and_keeps_none():
    controller = AdaController(AugmentPipe(), interval=1)
    logits = signs(3, 1).requires_grad_()
    controller.observe(logits)
    controller.step(batch=4)
    assert not controller.pipe.p.requires_grad and not controller.r_t.requires_grad


@pytest.mark.parametrize("arguments", [{"target": 1.5}, {"target": math.nan}, {"interval": 0}, {"ada_kimg": 0}])
def test_bad_arguments_of_the_controller_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AdaController(AugmentPipe(), **arguments)


# DiffAugment


def test_tint_equals_definition_one_pixel_at_a_time():
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    parameters = Tint(torch.tensor([0.3, -0.5, 0]), torch.tensor([0, 2.0, 1]), torch.tensor([0.5, 1.5, 1]))
    result = tint(x, parameters)
    for n in range(3):
        brightness, saturation, contrast = (
            float(values[n]) for values in (parameters.brightness, parameters.saturation, parameters.contrast)
        )
        mean = float(x[n].mean()) + brightness
        for row in range(8):
            for column in range(8):
                pixel = [float(value) + brightness for value in x[n, :, row, column]]
                grey = sum(pixel) / 3
                for channel in range(3):
                    value = grey + saturation * (pixel[channel] - grey)
                    expected = mean + contrast * (value - mean)
                    assert float(result[n, channel, row, column]) == pytest.approx(expected, abs=1e-6)


def test_tint_leaves_saturation_of_grey_alone():
    x = torch.randn(1, 1, 8, 8)
    plain = Tint(torch.zeros(1), torch.tensor([2.0]), torch.ones(1))
    assert torch.allclose(tint(x, plain), x, rtol=0, atol=1e-6)


def test_diffaugment_draws_over_the_ranges_of_the_paper():
    parameters = draw_tint(40_000, torch.device("cpu"))
    for values, low, width in (
        (parameters.brightness, -0.5, 1),
        (parameters.saturation, 0, 2),
        (parameters.contrast, 0.5, 1),
    ):
        assert scipy.stats.kstest(values.numpy(), scipy.stats.uniform(low, width).cdf).pvalue > 0.01
    shift = draw_translation(40_000, 32, torch.device("cpu"))
    for axis in (0, 1):
        counts = torch.bincount(shift[:, axis] + 4)
        assert len(counts) == 9
        assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.01


def test_translation_moves_each_image_and_fills_with_zeros():
    x = torch.rand(64, 3, 16, 16) + 1
    result = seeded(DiffAugment("translation"))(x)
    torch.manual_seed(5)
    shifts = draw_translation(64, 16, x.device)
    assert torch.equal(result, move(x, shifts, "zeros"))
    right, down = shifts[:, 0].abs(), shifts[:, 1].abs()
    assert torch.equal((result[:, 0] != 0).sum([1, 2]), (16 - right) * (16 - down))
    assert len(shifts.unique(dim=0)) > 10


def test_cutout_takes_a_square_of_half_the_side_out_of_every_image():
    x = torch.ones(500, 1, 16, 16)
    missing = (DiffAugment("cutout")(x) == 0).sum([1, 2, 3])
    assert missing.max() == 64 and missing.min() >= 16
    assert not torch.equal(missing, missing[:1].expand(500))


def test_policies_are_applied_in_the_order_given():
    x = torch.rand(8, 3, 16, 16) + 1
    cut_last, cut_first = (
        seeded(DiffAugment(policy))(x) for policy in ("color,translation,cutout", "cutout, translation, color")
    )
    holes = (cut_last == 0).all(1).flatten(1).sum(1)
    assert (holes >= 16).all()  # nothing is painted into the hole
    assert (cut_first == 0).sum() == 0  # colour comes after: no pixel keeps the 0 of the hole


@pytest.mark.parametrize("channels", [1, 3])
def test_diffaugment_is_differentiable_twice(channels):
    augment = seeded(DiffAugment("color,translation,cutout"))
    x = torch.randn(2, channels, 8, 8, dtype=torch.float64, requires_grad=True)

    def curved(x):
        return augment(x.square()).sin()

    assert gradcheck(curved, x, fast_mode=True)
    assert gradgradcheck(curved, x, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_diffaugment_keeps_the_dtype(dtype):
    x = torch.randn(4, 3, 8, 8).to(dtype)
    augment = seeded(DiffAugment())
    assert augment(x).dtype == dtype
    assert torch.equal(augment(x), augment(x.float()).to(dtype))


@pytest.mark.parametrize("policy", ["", "colour", "color,color", "translation,", "color translation"])
def test_unknown_policies_are_refused_in_one_line(policy):
    with pytest.raises(UserError, match=r"DiffAugment policy '.*': expected one or more of color, translation, cutout"):
        DiffAugment(policy)
