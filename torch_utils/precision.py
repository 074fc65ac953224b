"""How exactly to compute: TF32, low precision, and the order in memory that suits them."""

import torch

from torch_utils.command_line import UserError
from torch_utils.ops.native import wanted

LOW_DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}  # what --precision may be


def set_math(tf32: bool, cudnn_benchmark: bool) -> None:
    """Choose, for all that CUDA computes in float32 from now on.

    Args:
        tf32: let products and convolutions round what they multiply to 10 bits of mantissa (TF32, from the A100 on).
        cudnn_benchmark: try cuDNN's algorithms for every new shape and keep the fastest. Which one that is, and so the
            last bits of a result, can differ from run to run.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark


def low_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What `--precision` means for networks on `device`: their low precision, or None for float32 throughout.

    Raises:
        UserError: there is no such arithmetic on the device.
    """
    dtype = LOW_DTYPES[precision]
    if dtype == torch.float16 and device.type != "cuda":
        raise UserError(f"--precision=fp16: there is no float16 arithmetic on {device.type}; expected fp32 or bf16")
    return dtype


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has instructions for `dtype`, so that it is faster than float32 and not many times slower."""
    if dtype == torch.float32:
        return True
    if device.type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) >= (8, 0)
    if dtype != torch.bfloat16 or device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def conv_format(x: torch.Tensor, dtype: torch.dtype) -> torch.memory_format:
    """The order in memory in which convolutions of x in `dtype` are fastest.

    On the CPU the native 3x3 convolution and oneDNN's others read the channels of a pixel as vectors; with the
    reference's filters the usual order is as fast. On CUDA matrix units want channels last, in half precision.
    """
    last = wanted("auto", x) if x.device.type == "cpu" else x.device.type == "cuda" and dtype != torch.float32
    return torch.channels_last if last else torch.contiguous_format
