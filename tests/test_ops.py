"""The image operations against slow, obvious definitions and against arrays computed elsewhere (tests/data).

Every test runs twice, with the reference and with the native ops, but those that use `native`: they are of what only
the native ops do. These are built on the first call.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

DATA = Path(__file__).parent / "data"
ACTIVATIONS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
SMOOTH = ("linear", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")


@pytest.fixture(scope="module")
def native_library():
    try:
        return custom_ops.library("cpu", must=True)
    except custom_ops.BuildError as error:
        pytest.skip(f"no native ops: {error}")


def pytest_generate_tests(metafunc):
    metafunc.parametrize("mode", ["native"] if "native" in metafunc.fixturenames else ["ref", "native"], indirect=True)


@pytest.fixture(autouse=True)
def mode(request):
    if request.param == "native":
        request.getfixturevalue("native_library")
    custom_ops.set_mode(request.param)
    torch.manual_seed(0)
    yield request.param
    custom_ops.set_mode("ref")


@pytest.fixture
def native(mode):
    """For tests of what only the native ops do."""
    assert mode == "native"


def stored_cases(op):
    with safe_open(DATA / f"{op}.safetensors", "pt") as file:
        return json.loads(file.metadata()["cases"])


def stored_arrays(op, case):
    prefix = case + "."
    with safe_open(DATA / f"{op}.safetensors", "pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def assert_near(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# bias_act


def slow_bias_act(x, b, dim, act, alpha, gain, clamp):
    """One number at a time, from the definitions of the activations."""
    scale, shift = 1.0507009873554805, 1.6732632423543772  # selu's lambda and alpha
    function = {
        "linear": lambda v: v,
        "relu": lambda v: max(v, 0),
        "lrelu": lambda v: v if v > 0 else (0.2 if alpha is None else alpha) * v,
        "tanh": math.tanh,
        "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
        "elu": lambda v: v if v > 0 else math.expm1(v),
        "selu": lambda v: scale * v if v > 0 else scale * shift * math.expm1(v),
        "softplus": lambda v: math.log1p(math.exp(v)),
        "swish": lambda v: v / (1 + math.exp(-v)),
    }[act]
    if gain is None:
        gain = math.sqrt(2) if act in ("relu", "lrelu", "swish") else 1
    result = torch.empty_like(x)
    for index in torch.cartesian_prod(*[torch.arange(size) for size in x.shape]).tolist():
        value = gain * function(float(x[tuple(index)].detach()) + (0 if b is None else float(b[index[dim]].detach())))
        result[tuple(index)] = value if clamp is None else min(max(value, -clamp), clamp)
    return result


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("gain", [None, 0.7, -1.5])
@pytest.mark.parametrize("clamp", [None, 0.4])
def test_bias_act_equals_definition(act, gain, clamp):
    x, b = 2 * torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    actual = bias_act(x, b, act=act, gain=gain, clamp=clamp)
    assert_near(actual, slow_bias_act(x, b, 1, act, None, gain, clamp), 1e-12)
    assert_near(bias_act(x, act=act, gain=gain, clamp=clamp), slow_bias_act(x, None, 1, act, None, gain, clamp), 1e-12)


@pytest.mark.parametrize("dim", [0, 2, -1])
@pytest.mark.parametrize("alpha", [0.05, 0.0, -0.3])
def test_bias_act_takes_any_axis_and_slope(dim, alpha):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(x.shape[dim], dtype=torch.float64, requires_grad=True)
    assert_near(bias_act(x, b, dim, "lrelu", alpha), slow_bias_act(x, b, dim, "lrelu", alpha, None, None), 1e-12)
    assert gradcheck(lambda x, b: bias_act(x, b, dim, "lrelu", alpha), (x, b))


@pytest.mark.parametrize("case", stored_cases("bias_act"), ids=lambda case: case["case"])
def test_bias_act_equals_stored_arrays(case):
    stored = stored_arrays("bias_act", case["case"])
    x, b = stored["x"].requires_grad_(), stored["b"].requires_grad_()
    y = bias_act(x, b, case["dim"], case["act"], case["alpha"], case["gain"], case["clamp"])
    grad_y = stored["grad_y"].requires_grad_()
    grad_x, grad_b = torch.autograd.grad(y, [x, b], grad_y, create_graph=True)
    assert_near(y, stored["y"])
    assert_near(grad_x, stored["grad_x"])
    assert_near(grad_b, stored["grad_b"])
    if "v" in stored:
        assert_near(torch.autograd.grad(grad_x, x, stored["v"])[0], stored["grad2_x"])


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_has_right_gradients(act):
    x = torch.randn(2, 3, 2, dtype=torch.float64)
    x = (x + x.sign() * 0.1).requires_grad_()  # away from the kinks
    b = (torch.randn(3, dtype=torch.float64) * 0.01).requires_grad_()
    assert gradcheck(lambda x, b: bias_act(x, b, act=act, clamp=10), (x, b))
    assert gradgradcheck(lambda x, b: bias_act(x, b, act=act, clamp=10), (x, b))


def test_bias_act_clamp_stops_the_gradient():
    x = torch.tensor([[-3.0, -0.5, 0.5, 3.0]], requires_grad=True)
    bias_act(x, clamp=1).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_leaves_its_inputs_alone(act):
    x, b = torch.randn(2, 3, 4, 4), torch.randn(3)
    before = x.clone(), b.clone()
    for bias in (b, None):
        for gain in (None, 1):
            bias_act(x, bias, act=act, gain=gain)
    assert torch.equal(x, before[0]) and torch.equal(b, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_keeps_the_dtype_and_layout(act, dtype):
    x = torch.randn(2, 8, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    b = torch.randn(8, dtype=dtype)
    y = bias_act(x, b, act=act, clamp=2)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert_near(y.float(), bias_act(x.float(), b.float(), act=act, clamp=2), 0.02)
    assert bias_act(x[:0], b, act=act).shape == (0, 8, 4, 4)
    strided = x[:, ::2, 1:, ::3]
    assert_near(bias_act(strided, b[::2], act=act), bias_act(strided.contiguous(), b[::2], act=act), 0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"act": "gelu"}, r"act: 'gelu' is not one of linear, relu"),
        ({"clamp": -1}, r"clamp: -1 is negative"),
        ({"b": torch.zeros(4)}, r"b: expected shape \[3\] and torch.float32, .* got \[4\] and torch.float32"),
        ({"b": torch.zeros(3, dtype=torch.float64)}, r"b: expected .* got \[3\] and torch.float64"),
        ({"b": torch.zeros(3), "dim": 4}, r"dim: 4 is not an axis of x, whose shape is \[2, 3, 4, 4\]"),
        ({"x": torch.zeros(2, 3, dtype=torch.uint8)}, r"x: expected a floating-point tensor, got torch.uint8 \[2, 3\]"),
        ({"b": torch.zeros(3, device="meta")}, r"b: is on meta, x is on cpu"),
        ({"impl": "cuda"}, r"impl: 'cuda' is not one of auto, native, ref"),
    ],
)
def test_bias_act_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        bias_act(**({"x": torch.zeros(2, 3, 4, 4)} | arguments))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bias_act_native_equals_reference_to_second_order(act, dtype, layout):
    """Sizes beyond a block of 1024 elements, and not a multiple of any vector's."""
    x = (2 * torch.randn(3, 5, 37, 11)).to(dtype).to(memory_format=layout)
    b, dy, v = torch.randn(5).to(dtype), torch.randn(x.shape).to(dtype), torch.randn(x.shape).to(dtype)
    exact = dtype == torch.float32
    results = []
    for impl in ("ref", "native"):
        work = torch.float64 if impl == "ref" else dtype
        inputs = [tensor.detach().to(work).requires_grad_() for tensor in (x, b, dy)]
        y = bias_act(inputs[0], inputs[1], act=act, clamp=1.5, impl=impl)
        first = torch.autograd.grad(y, inputs[:2], inputs[2], create_graph=True)
        second = torch.autograd.grad(first[0], inputs, v.to(work), allow_unused=True)
        results.append([y, *first, *(torch.zeros(()) if s is None or not s.any() else s for s in second)])
    for reference, native_result in zip(*results, strict=True):
        if exact:
            assert_near(native_result, reference.float(), 1e-5)
        else:  # where rounding takes a value across a kink or the clamp, derivatives differ: 2 in 1000 may
            error = (native_result.double() - reference).abs() / reference.abs().max().clamp(min=1e-3)
            most = error.flatten().kthvalue(max(math.ceil(error.numel() * 0.998), 1)).values
            assert most < (0.03 if error.numel() > 5 else 0.1)  # a sum over the batch holds them all


@pytest.mark.usefixtures("native")
def test_bias_act_native_passes_nan_and_keeps_infinities():
    x = torch.tensor([math.nan, -math.inf, math.inf, 1.0])
    for act in ACTIVATIONS:
        y, reference = bias_act(x, act=act, impl="native"), bias_act(x, act=act, impl="ref")
        if act == "swish":  # of minus infinity: 0 times infinity
            assert not y[1].isfinite()
            y[1] = reference[1]
        assert torch.allclose(y, reference, equal_nan=True), (act, y, reference)
        assert bias_act(x, act=act, clamp=2.0, impl="native")[0].isnan()


@pytest.mark.usefixtures("native")
def test_native_results_do_not_depend_on_the_number_of_threads():
    x, b, f = torch.randn(3, 40, 33, 65), torch.randn(40), setup_filter([1, 3, 3, 1])
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            for layout in (torch.contiguous_format, torch.channels_last):
                inputs = [x.to(memory_format=layout).requires_grad_(), b.clone().requires_grad_()]
                y = upsample2d(bias_act(*inputs, act="lrelu"), f)
                results += [y, *torch.autograd.grad(y.square().sum(), inputs)]
        finally:
            torch.set_num_threads(1)
    for one, three in zip(results[:6], results[6:], strict=True):
        assert torch.equal(one, three)


@pytest.mark.usefixtures("native")
def test_bias_act_native_says_that_it_has_no_third_derivative():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(bias_act(x, act="tanh").sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="bias_act: a third derivative; the reference has one"):
        second.sum().backward()


# setup_filter


def test_setup_filter_normalises_and_spreads_few_taps():
    f = setup_filter([1, 3, 3, 1])
    assert f.dtype == torch.float32 and f.shape == (4, 4)
    assert torch.allclose(f, torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64)


def test_setup_filter_keeps_many_taps_separable():
    assert setup_filter(range(1, 9)).shape == (8,)
    assert setup_filter(range(1, 9), separable=False).shape == (8, 8)
    assert setup_filter([1, 2], separable=True).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert setup_filter([[1, 2, 3]]).tolist() == [pytest.approx([1 / 6, 2 / 6, 3 / 6])]


def test_setup_filter_options():
    assert setup_filter(None).tolist() == [[1]]
    assert setup_filter(3.0, normalize=False).tolist() == [[9]]
    assert setup_filter([1, 2], normalize=False, flip_filter=True).tolist() == [[4, 2], [2, 1]]
    assert setup_filter([1, 2], normalize=False, flip_filter=True, separable=True).tolist() == [2, 1]
    x = torch.randn(1, 1, 5, 5)
    for separable in (True, False):  # a gain is one of the image, however often the filter passes over it
        f = setup_filter([1, 2, 1], gain=4, separable=separable)
        assert_near(upfirdn2d(x, f), 4 * upfirdn2d(x, setup_filter([1, 2, 1], separable=separable)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"f": torch.zeros(2, 2, 2)}, r"f: expected a filter .* got \[2, 2, 2\]"),
        ({"f": []}, r"f: expected a filter .* got \[0\]"),
        ({"f": [1, -1]}, r"normalize: the taps of f sum to 0"),
        ({"f": [[1, 2], [3, 4]], "separable": True}, r"separable: f \[2, 2\] has two axes"),
    ],
)
def test_setup_filter_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        setup_filter(**arguments)


# upfirdn2d


def slow_upfirdn2d(x, f, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), flip_filter=False, gain=1.0):
    """Zeros, padding, one sum a pixel, every down-th pixel: the definition, one step after the other."""
    num, channels, height, width = x.shape
    wide = torch.zeros(num, channels, height * up[1], width * up[0], dtype=x.dtype)
    wide[:, :, :: up[1], :: up[0]] = x
    wide = functional.pad(wide, [max(side, 0) for side in padding])
    x0, x1, y0, y1 = (max(-side, 0) for side in padding)
    wide = wide[:, :, y0 : wide.shape[2] - y1, x0 : wide.shape[3] - x1]
    taps = torch.outer(f, f) if f.ndim == 1 else f
    taps = taps if flip_filter else taps.flip(0, 1)
    y = torch.zeros(num, channels, wide.shape[2] - taps.shape[0] + 1, wide.shape[3] - taps.shape[1] + 1, dtype=x.dtype)
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            patch = wide[:, :, row : row + taps.shape[0], column : column + taps.shape[1]]
            y[:, :, row, column] = gain * (patch * taps).sum(dim=[2, 3])
    return y[:, :, :: down[1], :: down[0]]


FILTERS = ([3], [4], [1, 3], [4, 2], [1, 1])
PADDINGS = ((0, 0, 0, 0), (2, 1, 2, 1), (3, 5, 4, 6), (1, -1, -2, 3), (-1, -2, 0, -1), (-6, 9, 9, -6))


@pytest.mark.parametrize("up", [(1, 1), (2, 2), (3, 1), (1, 2)])
@pytest.mark.parametrize("down", [(1, 1), (2, 2), (1, 3), (2, 1)])
def test_upfirdn2d_equals_definition(up, down):
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    for shape in FILTERS:
        f = torch.randn(shape, dtype=torch.float64)
        for padding in PADDINGS:
            for flip_filter in (False, True):
                if 5 * up[1] + padding[2] + padding[3] < 4 or 6 * up[0] + padding[0] + padding[1] < 4:
                    continue
                options = {"up": up, "down": down, "padding": padding, "flip_filter": flip_filter, "gain": -1.7}
                assert_near(upfirdn2d(x, f, **options), slow_upfirdn2d(x, f, **options), 1e-12)


@pytest.mark.parametrize("case", stored_cases("upfirdn2d"), ids=lambda case: case["case"])
def test_upfirdn2d_equals_stored_arrays(case):
    stored = stored_arrays("upfirdn2d", case["case"])
    x = stored["x"].requires_grad_()
    y = upfirdn2d(x, stored["f"], case["up"], case["down"], case["padding"], case["flip_filter"], case["gain"])
    assert_near(y, stored["y"])
    assert_near(torch.autograd.grad(y, x, stored["grad_y"])[0], stored["grad_x"])


@pytest.mark.parametrize("shape", [[3], [2, 3]])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_upfirdn2d_has_right_gradients(shape, up, down):
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    f = torch.randn(shape, dtype=torch.float64)

    def squared(x):  # so that there is a second derivative
        return upfirdn2d(x, f, up=up, down=down, padding=[2, 1, -1, 3]).square()

    assert gradcheck(squared, (x,))
    assert gradgradcheck(squared, (x,))


def test_upfirdn2d_short_forms():
    x, f = torch.randn(1, 2, 5, 6), torch.randn(3, 3)
    assert torch.equal(upfirdn2d(x, None), x)
    assert torch.equal(upfirdn2d(x, f, padding=2), upfirdn2d(x, f, padding=[2, 2, 2, 2]))
    assert torch.equal(upfirdn2d(x, f, padding=[2, 1]), upfirdn2d(x, f, padding=[2, 2, 1, 1]))
    assert torch.equal(upfirdn2d(x, f, up=2, down=3), upfirdn2d(x, f, up=[2, 2], down=[3, 3]))
    assert upfirdn2d(x, f, up=[3, 1]).shape == (1, 2, 3, 16)  # x before y
    assert upfirdn2d(x, f, down=[1, 2]).shape == (1, 2, 2, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("f", [setup_filter([1, 3, 3, 1]), setup_filter([1, 3, 3, 1], separable=True)])
@pytest.mark.parametrize("options", [{"up": 2}, {"down": 2}, {"up": 2, "down": 3}])
def test_upfirdn2d_takes_dtypes_strides_and_no_images(f, options, dtype):
    x = torch.randn(2, 3, 9, 8).to(dtype)
    y = upfirdn2d(x, f, padding=[2, 1], **options)
    assert y.dtype == dtype
    exact = slow_upfirdn2d(
        x.double(),
        f.double(),
        up=[options.get("up", 1)] * 2,
        down=[options.get("down", 1)] * 2,
        padding=(2, 2, 1, 1),
    )
    # Half of a unit in the last place of the largest value: rounded once, at the end.
    assert_near(y.double(), exact, torch.finfo(dtype).eps / 2 + 1e-9)
    assert upfirdn2d(x[:0], f, padding=[2, 1], **options).shape == (0, *y.shape[1:])
    strided = x.transpose(2, 3)[:, ::2]
    assert_near(upfirdn2d(strided, f, **options), upfirdn2d(strided.contiguous(), f, **options), 1e-2)
    channels_last = upfirdn2d(x.to(memory_format=torch.channels_last), f, padding=[2, 1], **options)
    assert_near(channels_last, y, 1e-2)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "taps", [[1.0, 3.0, 3.0, 1.0], [[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]], [float(i) for i in range(12)]]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upfirdn2d_native_equals_reference(taps, dtype, layout):
    f = setup_filter(taps)
    x = torch.randn(2, 9, 21, 34).to(dtype).to(memory_format=layout)
    for up, down in ((1, 1), (2, 1), (1, 2), ([3, 2], [2, 3])):
        for padding in ([6, 5, 7, 8], [12, -7, -3, 13]):
            exact = upfirdn2d(x.double(), f, up, down, padding, gain=3, impl="ref")
            y = upfirdn2d(x, f, up, down, padding, gain=3, impl="native")
            assert y.is_contiguous(memory_format=layout)
            assert_near(y.double(), exact, 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps)


@pytest.mark.usefixtures("native")
def test_upfirdn2d_native_writes_large_results_around_the_cache():
    """Beyond 4 MiB results are streamed, where rows are a multiple of 32 bytes."""
    f = setup_filter([1, 3, 3, 1])
    for width in (64, 62, 61):
        x = torch.randn(1, 40, 90, width)
        for layout in (torch.contiguous_format, torch.channels_last):
            assert_near(upsample2d(x.to(memory_format=layout), f), upsample2d(x, f, impl="ref"))


@pytest.mark.usefixtures("native")
def test_upfirdn2d_leaves_gradients_of_the_filter_to_the_reference():
    x, f = torch.randn(1, 1, 4, 4), torch.ones(2, 2, requires_grad=True)
    upfirdn2d(x, f).sum().backward()
    assert f.grad[0, 0] == pytest.approx(x[0, 0, 1:, 1:].sum().item(), rel=1e-5)
    with pytest.raises(ValueError, match="impl: 'native' gives no gradient of the filter f"):
        upfirdn2d(x, f, impl="native")


@pytest.mark.usefixtures("native")
def test_native_ops_take_part_in_no_tracing():
    x = torch.randn(1, 2, 4, 4)
    traced = torch.jit.trace(lambda x: bias_act(x, act="lrelu"), torch.randn(1, 2, 4, 4))
    assert "_BiasAct" not in str(traced.graph)
    assert_near(traced(x), bias_act(x, act="lrelu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.usefixtures("native")
def test_cuda_kernels_equal_the_cpus(dtype, layout):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 1e-2
    x, b, f = torch.randn(3, 16, 20, 24), torch.randn(16), setup_filter([1, 3, 3, 1])
    for act in ACTIVATIONS:
        for operation in (
            lambda x, b, f, act=act: bias_act(x, b, act=act, impl="native"),
            lambda x, b, f: upsample2d(bias_act(x, b, act="lrelu", impl="native"), f, impl="native"),
            lambda x, b, f: downsample2d(bias_act(x, b, impl="native"), f, impl="native"),
            lambda x, b, f: filter2d(bias_act(x, b, impl="native"), f, impl="native"),
            lambda x, b, f: upfirdn2d(
                bias_act(x, b, impl="native"), f[0], [3, 2], [2, 3], [3, -1, 2, 5], impl="native"
            ),
        ):
            results = []
            for device in ("cpu", "cuda"):
                inputs = [x.to(device, dtype).to(memory_format=layout), b.to(device, dtype)]
                inputs = [tensor.requires_grad_() for tensor in inputs]
                y = operation(*inputs, f.to(device))
                first = torch.autograd.grad(y.float().square().sum(), inputs, create_graph=True)
                second = torch.autograd.grad(first[0].float().square().sum(), inputs)
                results.append([tensor.cpu() for tensor in (y, *first, *second)])
            for on_cpu, on_gpu in zip(*results, strict=True):
                assert_near(on_gpu, on_cpu, tolerance * 10)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.usefixtures("native")
def test_cuda_kernels_take_more_than_2_to_the_31_elements():
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("no CUDA device with 40 GiB free")
    x = torch.ones(1, 2, 1 << 15, (1 << 15) + 64, device="cuda", dtype=torch.float16)
    b = torch.tensor([0.0, 1.0], device="cuda", dtype=torch.float16)
    y = bias_act(x, b, act="relu", gain=1, impl="native")
    assert y[0, 0, -1, -1] == 1
    assert y[0, 1, -1, -1] == 2
    assert y[0, 1].min() == 2
    small = downsample2d(y, setup_filter([1, 3, 3, 1], device="cuda"), impl="native")
    assert small[0, 1, -2, -2] == 2


def test_resizing_keeps_constants_and_centres():
    f = setup_filter([1, 3, 3, 1])
    x = torch.ones(1, 1, 8, 8)
    assert upsample2d(x, f).shape == (1, 1, 16, 16)
    assert downsample2d(x, f).shape == (1, 1, 4, 4)
    assert filter2d(x, f).shape == (1, 1, 8, 8)
    for y in (upsample2d(x, f), downsample2d(x, f), filter2d(x, f)):
        assert y[0, 0, 2:-2, 2:-2].flatten().tolist() == pytest.approx([1] * (y.shape[2] - 4) ** 2)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    up = upsample2d(ramp, f)[0, 0, 8, 4:-4]  # pixel centres of the small image lie between those of the large one
    assert up.tolist() == pytest.approx([(column + 0.5) / 2 - 0.5 for column in range(4, 12)])
    down = downsample2d(ramp, f)[0, 0, 2, 1:-1]
    assert down.tolist() == pytest.approx([2.5, 4.5])


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_resizing_gives_the_size(taps, factor):
    x, f = torch.randn(1, 2, 6, 12), torch.randn(taps)
    assert upsample2d(x, f, up=[factor, 2]).shape == (1, 2, 12, 12 * factor)
    assert downsample2d(x, f, down=[factor, 2]).shape == (1, 2, 3, 12 // factor)
    assert filter2d(x, f).shape == x.shape
    assert filter2d(x, f, padding=[1, 0, 0, 3]).shape == (1, 2, 9, 13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3, 4, 4)}, r"x: expected images \[N, C, H, W\], got \[3, 4, 4\]"),
        ({"x": torch.zeros(1, 3, 4, 4, dtype=torch.int64)}, r"x: expected a floating-point tensor, got torch.int64"),
        ({"f": torch.zeros(2, 2, 2)}, r"f: expected a filter .* got \[2, 2, 2\]"),
        ({"f": torch.zeros(2, dtype=torch.int32)}, r"f: expected a floating-point tensor, got torch.int32 \[2\]"),
        ({"f": [1.0]}, r"f: expected a floating-point tensor, got list"),
        ({"f": torch.ones(3, device="meta")}, r"f: is on meta, x is on cpu"),
        ({"up": 0}, r"up: 0 is not an integer >= 1"),
        ({"up": [1, 2, 3]}, r"up: \[1, 2, 3\] is not an integer"),
        ({"down": 1.5}, r"down: 1.5 is not an integer"),
        ({"padding": [1, 2, 3]}, r"padding: \[1, 2, 3\] is not"),
        (
            {"padding": -1},
            r"padding: -1 makes x \[1, 3, 4, 4\] 2 high and 2 wide, smaller than the filter's 3 x 3 taps",
        ),
        ({"impl": "slow"}, r"impl: 'slow' is not one of auto, native, ref"),
    ],
)
def test_upfirdn2d_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        upfirdn2d(**({"x": torch.zeros(1, 3, 4, 4), "f": torch.ones(3)} | arguments))


# conv2d_resample


def slow_conv2d_resample(x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    """Upsample and pad, convolve, downsample: three steps."""
    taps = torch.ones(1, 1, dtype=x.dtype) if f is None else f
    height, width = taps.shape[0], taps.shape[-1]
    sides = list(padding)
    if up > 1:
        sides = [
            sides[0] + (width + up - 1) // 2,
            sides[1] + (width - up) // 2,
            sides[2] + (height + up - 1) // 2,
            sides[3] + (height - up) // 2,
        ]
    if down > 1:
        sides = [
            sides[0] + (width - down + 1) // 2,
            sides[1] + (width - down) // 2,
            sides[2] + (height - down + 1) // 2,
            sides[3] + (height - down) // 2,
        ]
    identity = torch.ones(1, 1, dtype=x.dtype)
    x = slow_upfirdn2d(x, taps if up > 1 else identity, (up, up), (1, 1), sides, flip_filter, up * up)
    x = functional.conv2d(x, w if flip_weight else w.flip(2, 3), groups=groups)
    return slow_upfirdn2d(x, taps if down > 1 else identity, (1, 1), (down, down), flip_filter=flip_filter)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 3), (1, 3)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_resample_equals_definition(size, up, down, groups):
    x, w = torch.randn(1, 4, 6, 7, dtype=torch.float64), torch.randn(6, 4 // groups, *size, dtype=torch.float64)
    for f in (None, torch.randn(4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)):
        for padding in ((1, 1, 1, 1), (2, 1, 0, 3), (-1, 0, 1, -1)):
            flip_weight, flip_filter = padding[0] == 1, padding[0] == 2
            arguments = (x, w, f, up, down, padding, groups, flip_weight, flip_filter)
            assert_near(conv2d_resample(*arguments), slow_conv2d_resample(*arguments), 1e-10)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("size", [1, 3])
def test_conv2d_resample_has_right_gradients_and_size(up, down, size):
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, size, size, dtype=torch.float64, requires_grad=True)
    f = setup_filter([1, 3, 3, 1])

    def convolve(x, w):
        return conv2d_resample(x, w, f, up=up, down=down, padding=size // 2, flip_weight=up == 1)

    assert convolve(x, w).shape == (1, 3, 4 * up // down, 4 * up // down)
    assert gradcheck(convolve, (x, w))
    assert gradgradcheck(convolve, (x, w))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_conv2d_resample_takes_half_precision_strides_and_no_images(up, down, dtype):
    x, w, f = torch.randn(2, 8, 6, 6), torch.randn(4, 4, 3, 3), setup_filter([1, 3, 3, 1])
    exact = conv2d_resample(x[:, ::2], w, f, up, down, 1)
    half = conv2d_resample(x.to(dtype)[:, ::2], w.to(dtype), f, up, down, 1)
    assert half.dtype == dtype
    assert_near(half.float(), exact, 0.03)
    assert conv2d_resample(x[:0, ::2], w, f, up, down, 1).shape == (0, *exact.shape[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(4, 8, 8)}, r"x: expected images"),
        ({"w": torch.zeros(6, 4, 3)}, r"w: expected weights .* got \[6, 4, 3\]"),
        (
            {"w": torch.zeros(6, 4, 3, 3).half()},
            r"w: expected weights .* of x's torch.float32, got .* of torch.float16",
        ),
        ({"w": torch.zeros(6, 3, 3, 3)}, r"groups: 1 does not fit x \[1, 4, 8, 8\] and w \[6, 3, 3, 3\]"),
        ({"groups": 0}, r"groups: 0 does not fit"),
        ({"up": 0}, r"up: 0 is not an integer >= 1"),
        ({"down": [2, 2]}, r"down: \[2, 2\] is not an integer >= 1"),
        ({"padding": -4}, r"padding: -4 leaves nothing of x"),
    ],
)
def test_conv2d_resample_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        conv2d_resample(**({"x": torch.zeros(1, 4, 8, 8), "w": torch.zeros(6, 4, 3, 3)} | arguments))
