"""Rows of unit length, read in blocks from an array that may be larger than the memory."""

import contextlib
import functools
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from stylegan2_icgan.search.copies import first_equal

NEARLY_UNIT = 1e-5  # rows this close to unit length are used as they lie, and the bound on the scores widened
READ_ELEMENTS = 1 << 24  # of a block that is read to be looked at once: 64 MiB of float32
MODERATE = 1e-12, 1e12  # lengths whose products neither vanish nor overflow in float32
RESIDENT_SHARE = 0.5  # of the free memory of a GPU: rows that take less are kept there


class UnitRows:
    """float16 or float32 [N, d] in memory or memory-mapped, as rows of unit length on a device.

    Nothing is copied whole on the CPU. On a GPU the rows are, in their own type, when they fit.

    Attributes:
        norms: float64 [N], lengths of the stored rows.
        as_they_lie: float32 rows so close to unit length that they are used as they are.
        moderate: no row is so short or long that float32 can't hold its length, or the product of two.
        bound: how far a float32 product of two rows of `block` or `take` can be from their cosine similarity.

    Raises:
        ValueError: not float16 or float32 [N, d], or a row without a direction (zero, NaN, infinite).
    """

    def __init__(self, features: np.ndarray, device: torch.device | None = None) -> None:
        if features.ndim != 2 or features.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"features are {features.dtype} {list(features.shape)}; expected float16 or float32 [N, d]"
            )
        self.features = features
        self.device = device if device is not None and device.type == "cuda" else torch.device("cpu")
        self.num, self.h_dim = features.shape
        self.norms = _norms(features)
        off = float(np.abs(self.norms - 1).max(initial=0.0))
        self.as_they_lie = features.dtype == np.float32 and off <= NEARLY_UNIT
        self.bound = product_bound(self.h_dim, torch.float32) + (3 * off if self.as_they_lie else 0.0)
        self.moderate = bool(((self.norms > MODERATE[0]) & (self.norms < MODERATE[1])).all())
        self._resident = self._upload() if self.device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self.features)

    @functools.cached_property
    def first_equal(self) -> np.ndarray:
        """For each row the smallest id of the stored rows that equal it byte for byte, int64 [N]."""
        return first_equal(self.features, self.norms)

    def block(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Rows start .. stop - 1 as float32 or float64 [B, d]; do not write to it."""
        if self._resident is not None:
            return self._unit(self._resident[start:stop], self.norms[start:stop], dtype)
        return self._unit(as_tensor(self.features[start:stop]), self.norms[start:stop], dtype)

    def take(self, ids: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Rows of int64 [B] as float32 or float64 [B, d]."""
        if self._resident is not None:
            return self._unit(self._resident[torch.from_numpy(ids).to(self.device)], self.norms[ids], dtype)
        return self._unit(torch.from_numpy(np.take(self.features, ids, axis=0)), self.norms[ids], dtype)

    def _unit(self, x: torch.Tensor, norms: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        if self.as_they_lie and dtype == torch.float32:
            return x.to(self.device)
        wide = dtype if self.moderate else torch.float64
        return (x.to(self.device, wide) / torch.from_numpy(norms).to(self.device, wide)[:, None]).to(dtype)

    def _upload(self) -> torch.Tensor | None:
        if self.features.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return None
        resident = torch.empty(self.features.shape, dtype=as_tensor(self.features[:1]).dtype, device=self.device)
        step = max(1, READ_ELEMENTS // self.h_dim)
        for start in range(0, self.num, step):
            resident[start : start + step] = as_tensor(self.features[start : start + step]).to(self.device)
        return resident


def product_bound(h_dim: int, dtype: torch.dtype) -> float:
    """Largest error of the computed product of two unit vectors, whatever the order of summation.

    |computed - exact| <= gamma_n sum |x_i y_i| <= gamma_n, gamma_n = n u / (1 - n u), u half the machine epsilon. Five
    more roundings stand for the length of either row and the division by it, and for a threshold that is computed as
    the best score less twice this bound.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
    """
    rounding = (h_dim + 5) * torch.finfo(dtype).eps / 2
    return rounding / (1 - rounding)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the memory of an array, also of a read-only map (torch warns of those); do not write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(np.asarray(array))


def _norms(features: np.ndarray) -> np.ndarray:
    """float64 [N] lengths of all rows."""
    norms = np.empty(len(features))
    step = max(1, READ_ELEMENTS // 8 // max(features.shape[1], 1))
    for start in range(0, len(features), step):
        block = as_tensor(features[start : start + step]).double()
        norms[start : start + step] = block.norm(dim=1).numpy()
    bad = ~((norms > 0) & np.isfinite(norms))
    if bad.any():
        raise ValueError(f"row {int(bad.argmax())} of the features has no direction (zero or not finite)")
    return norms


@contextlib.contextmanager
def highest_precision() -> Iterator[None]:
    """Products of float32 in float32: no TF32, no bfloat16, whatever the process has chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
