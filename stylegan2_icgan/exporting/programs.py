"""ONNX files and torch.export programs, each compared with the generator it was made of before it gets its name.

Both take batches of any size: they are traced at one size and checked at others. Reference ops are traced, and
modulated convolutions are not fused, since a fused one has as many groups as there are images.
"""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan2_icgan.exporting.inference import Fixed, InferenceGenerator, random_inputs, widths
from torch_utils import custom_ops
from torch_utils.command_line import UserError
from torch_utils.files import atomic_write
from torch_utils.misc import parameter_bytes

TRACED, CHECKED = 2, (1, 3)  # batch sizes
TOLERANCE = 1e-3  # of images in [-1, 1]; 8 bits resolve 8e-3
LARGEST_ONNX = 2 << 30  # bytes that one ONNX file holds

Run = Callable[[Mapping[str, Tensor]], Tensor]


def save_program(generator: torch.nn.Module, fixed: Fixed, path: Path) -> float:
    """Write a torch.export program (.pt2): `torch.export.load(path).module()(z=z, h=h)`.

    Returns:
        the largest difference to the generator that was seen, in [-1, 1].

    Raises:
        UserError: the program gives other images.
    """
    program, buffer = _program(InferenceGenerator(generator, fixed)), io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
    difference = _check(generator, fixed, lambda inputs: loaded(**inputs), path)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
    return difference


def save_onnx(generator: torch.nn.Module, fixed: Fixed, path: Path, about: Mapping[str, Any]) -> float:
    """Write an ONNX file: inputs z, c and h as far as the model has them, float32 [batch, width]; output image.

    Args:
        about: JSON, kept in the file's metadata.

    Returns:
        the largest difference to the generator that was seen, in [-1, 1].

    Raises:
        UserError: the extra is not installed, the model is too large for one file, or the file gives other images.
    """
    runtime = import_onnxruntime(path)
    import onnx_ir  # what torch makes ONNX with

    size = parameter_bytes({"G": generator})
    if size > 0.95 * LARGEST_ONNX:
        raise UserError(f"--out={path}: {size:,} bytes of weights, an ONNX file holds 2 GiB; write a .pt2")
    program = _program(InferenceGenerator(generator, fixed))
    with _quiet():
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=list(widths(generator)), output_names=["image"], verbose=False
        )
    assert onnx is not None
    for value in [*onnx.model.graph.inputs, *onnx.model.graph.outputs]:
        assert value.shape is not None
        value.shape = onnx_ir.Shape(["batch", *value.shape[1:]])
    onnx.model.metadata_props["stylegan2_icgan"] = json.dumps(dict(about))
    content = onnx.model_proto.SerializeToString()

    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        (image,) = session.run(["image"], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(image)

    difference = _check(generator, fixed, run, path)
    with atomic_write(path) as file:
        file.write(content)
    return difference


def import_onnxruntime(path: Path) -> Any:
    """onnxruntime, where everything that an ONNX file takes is there.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--out={path} needs onnx, onnxscript and onnxruntime ({error.name} is missing): pip install -e .[export]"
        ) from None
    return onnxruntime


def _program(network: InferenceGenerator) -> torch.export.ExportedProgram:
    inputs = random_inputs(network.generator, TRACED, seed=0)
    batch = torch.export.Dim("batch", min=1)
    with _quiet(), _reference_ops():
        return torch.export.export(
            network, (), kwargs=inputs, dynamic_shapes={name: {0: batch} for name in inputs}, strict=True
        )


@torch.no_grad()
def _check(generator: torch.nn.Module, fixed: Fixed, run: Run, path: Path) -> float:
    """Largest difference between what `run` and the generator make of the same inputs."""
    largest = 0.0
    for num in CHECKED:
        inputs = random_inputs(generator, num, seed=num)
        expected = generator(**inputs, **vars(fixed)).clamp(-1, 1)
        found = run(inputs).clamp(-1, 1)
        difference = float((expected - found).abs().max()) if expected.shape == found.shape else float("inf")
        if not difference <= TOLERANCE:
            raise UserError(
                f"--out={path}: what was exported gives images that differ by {difference:g} at batch size {num}, more "
                f"than {TOLERANCE:g}; nothing was written"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _reference_ops() -> Iterator[None]:
    before = custom_ops.get_mode()
    custom_ops.set_mode("ref")
    try:
        yield
    finally:
        custom_ops.set_mode(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says to itself about its own deprecated calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
