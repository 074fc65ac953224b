import pytest
import torch
from conftest import TINY_RUN, invoke

import train
from torch_utils import custom_ops, precision
from torch_utils.command_line import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def state():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


@pytest.fixture
def _math_as_before():
    before = state()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


@pytest.mark.usefixtures("_math_as_before")
def test_set_math_switches_tf32_and_the_choice_of_algorithms():
    precision.set_math(tf32=True, cudnn_benchmark=True)
    assert state() == ("high", True, True)
    precision.set_math(tf32=False, cudnn_benchmark=False)
    assert state() == ("highest", False, False)


@pytest.mark.usefixtures("_math_as_before")
def test_training_computes_as_its_flags_say(patterns_zip):
    for flags, expected in ([], ("highest", False, True)), (["--tf32", "--no-cudnn-benchmark"], ("high", True, False)):
        assert invoke(train.main, f"--data={patterns_zip}", *TINY_RUN, *flags, "-n").exit_code == 0
        assert state() == expected


def test_low_dtype_refuses_float16_on_the_cpu():
    assert precision.low_dtype("fp32", CPU) is None
    assert precision.low_dtype("bf16", CPU) == torch.bfloat16
    assert precision.low_dtype("fp16", CUDA) == torch.float16
    with pytest.raises(UserError, match="--precision=fp16: there is no float16 arithmetic on cpu; expected fp32 or"):
        precision.low_dtype("fp16", CPU)


def test_float16_is_never_fast_on_the_cpu():
    assert precision.is_fast(torch.float32, CPU)
    assert not precision.is_fast(torch.float16, CPU)
    assert precision.is_fast(torch.bfloat16, CPU) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_a_torch_without_onednn_is_not_asked_about_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops, "mkldnn", raising=False)
    monkeypatch.setattr(torch.ops, "mkldnn", None, raising=False)
    assert not precision.is_fast(torch.bfloat16, CPU)


def test_channels_come_last_where_native_ops_compute():
    x = torch.zeros(1, 4, 2, 2)
    assert precision.conv_format(x, x.dtype) == torch.contiguous_format
    custom_ops.set_mode("auto")
    try:
        last = custom_ops.prepare(CPU) == "native"
        assert (precision.conv_format(x, x.dtype) == torch.channels_last) == last
    finally:
        custom_ops.set_mode("ref")
