"""NumPy arrays and scalars in a pickle."""

import math
import re
from typing import Any

import numpy as np

from stylegan2_icgan.published_files.pickle_reader import Known, Refusal, Restorable

CODES = re.compile(r"[biufSUO]\d{1,9}")  # boolean, integers, floating point, bytes, text, objects


class Dtype(Restorable):
    """numpy.dtype('f4') and then its byte order."""

    def __init__(self, code: object, *rest: object) -> None:
        if not isinstance(code, str) or not CODES.fullmatch(code):
            raise Refusal("has an array of a type that is neither numbers nor text")
        self.numpy = np.dtype("O" if code[0] == "O" else code)

    def set_state(self, state: Any) -> None:
        _, order, *_ = state
        if order not in ("<", ">", "|", "="):
            raise TypeError
        self.numpy = self.numpy.newbyteorder(order)


class Array(Restorable):
    """An array: empty, and then its content.

    Args:
        numpy: of numbers or text, or of objects that are plain data.
    """

    def __init__(self, *arguments: object) -> None:
        self.numpy: np.ndarray[Any, Any] = np.empty(0)

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, Dtype) or not all(type(length) is int and length >= 0 for length in shape):
            raise TypeError
        count = math.prod(shape)
        if isinstance(content, list):
            if not dtype.numpy.hasobject or len(content) != count:
                raise TypeError
            flat = np.empty(count, dtype=object)
            for place, item in enumerate(content):  # one by one: flat[:] = would look into them
                flat[place] = item
        elif isinstance(content, bytes) and not dtype.numpy.hasobject:
            if len(content) != count * dtype.numpy.itemsize:
                raise Refusal(f"has an array of {count:,} values in {len(content):,} bytes")
            flat = np.frombuffer(content, dtype.numpy) if count else np.empty(0, dtype.numpy)
        else:
            raise TypeError
        self.numpy = flat.reshape(shape, order="F" if fortran else "C")


def scalar(dtype: object, content: object) -> object:
    """A number or text."""
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes) or dtype.numpy.hasobject:
        raise TypeError
    if len(content) != dtype.numpy.itemsize or not content:
        raise TypeError
    return np.frombuffer(content, dtype.numpy)[0].item()


def encode(text: object, encoding: object) -> bytes:
    """Bytes, as the oldest pickles write them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise TypeError
    return text.encode("latin-1")


def _not_called(*arguments: object) -> object:
    raise TypeError


ARRAYS: Known = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": _not_called,
    "_codecs.encode": encode,
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},  # its name before and from 2.0 on
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
}
