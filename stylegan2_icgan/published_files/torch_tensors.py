"""Tensors in a plain pickle: each carries its values as bytes, themselves a file in torch.save's older layout."""

import io
import math
from dataclasses import dataclass
from typing import Any

import torch

from stylegan2_icgan.published_files.pickle_reader import Known, Name, PickleReader, Refusal

MAGIC, LAYOUT = 0x1950A86A20F9469CFC6C, 1001  # at the start of torch.save's files before 1.6
MOST_AXES = 8
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Storage:
    """The values that one or more tensors lie in, [numel]."""

    values: torch.Tensor


def _not_called(*arguments: object) -> object:
    raise Refusal("calls a type, which such files never do")


STORAGE_TYPES: Known = {f"torch.{name}": _not_called for name in DTYPES}


def load_from_bytes(content: object) -> Storage:
    """What torch.storage._load_from_bytes names: a storage, saved by itself.

    The layout: pickles of a magic number, a layout number, the machine's sizes, the storage as a persistent id, and the
    list of keys; then for each key the count of its values, int64, and the values, all little-endian.
    """
    if not isinstance(content, bytes):
        raise TypeError
    file = io.BytesIO(content)
    described: list[tuple[torch.dtype, str, int]] = []

    def describe(persistent_id: Any) -> None:
        kind, storage_type, key, _, count, view = persistent_id
        if kind != "storage" or not isinstance(storage_type, Name) or view is not None or not isinstance(count, int):
            raise TypeError
        described.append((DTYPES[storage_type.full.removeprefix("torch.")], key, count))

    header = [PickleReader({}).read(file) for _ in range(3)]
    if header[:2] != [MAGIC, LAYOUT] or not header[2]["little_endian"]:
        raise Refusal("holds values in a layout that is not torch.save's older one")
    PickleReader(STORAGE_TYPES, describe).read(file)
    keys = PickleReader({}).read(file)
    if len(described) != 1 or keys != [described[0][1]]:
        raise Refusal("holds values in a layout that is not that of one storage")
    dtype, _, count = described[0]
    stored = int.from_bytes(file.read(8), "little", signed=True)
    start = file.tell()
    if stored != count or count < 0 or len(content) - start < count * dtype.itemsize:
        raise Refusal(f"announces {count:,} values and holds other")
    if count == 0:
        return Storage(torch.empty(0, dtype=dtype))
    values = torch.frombuffer(bytearray(content[start : start + count * dtype.itemsize]), dtype=dtype)
    return Storage(values)


def rebuild_tensor(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
) -> torch.Tensor:
    """What torch._utils._rebuild_tensor_v2 names: a view of a storage."""
    if not isinstance(storage, Storage) or not isinstance(offset, int):
        raise TypeError
    sizes, strides = _lengths(size), _lengths(stride)
    if len(sizes) != len(strides) or len(sizes) > MOST_AXES or offset < 0:
        raise TypeError
    numel = math.prod(sizes)
    last = offset + sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
    if numel > len(storage.values) or (numel > 0 and last >= len(storage.values)):
        raise Refusal(f"has a tensor of {numel:,} values in a storage of {len(storage.values):,}")
    return storage.values.as_strided(sizes, strides, offset)


def _lengths(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(length) is int and length >= 0 for length in value):
        raise TypeError
    return value


def rebuild_parameter(data: object, requires_grad: object, hooks: object) -> torch.Tensor:
    """What torch._utils._rebuild_parameter names: the tensor alone."""
    if not isinstance(data, torch.Tensor):
        raise TypeError
    return data


TENSORS: Known = {
    "torch.storage._load_from_bytes": load_from_bytes,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    **dict.fromkeys(map(str, DTYPES.values()), _not_called),  # attributes of modules
}
