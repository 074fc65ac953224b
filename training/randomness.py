"""Randomness as a function of (seed, position): nothing to save, nothing that depends on the number of workers.

A training step reseeds torch from its position; the data draws below need no generator at all, because each one is a
hash of the seed and the position of the sample in the run.
"""

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the increment of SplitMix64


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(*keys: int | np.ndarray) -> np.ndarray:
    """Mix integer keys, broadcast against each other, into well-spread uint64 values."""
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        for key in keys:
            state = _mix((state ^ np.asarray(key).astype(np.uint64)) + _GOLDEN)
    return state


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """float64 in [0, 1), a function of the keys alone."""
    return (hashed(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(bound: int, *keys: int | np.ndarray) -> np.ndarray:
    """int64 in [0, bound), a function of the keys alone."""
    return np.minimum((uniform(*keys) * bound).astype(np.int64), bound - 1)


def permutation(size: int, *keys: int) -> np.ndarray:
    """A permutation of range(size), a function of the keys alone."""
    return np.random.Generator(np.random.Philox(key=int(hashed(*keys)[0]))).permutation(size)


def seed_everything(*keys: int) -> None:
    """Seed torch from the keys, e.g. (seed, rank, cur_nimg), on the CPU and on the GPU once that is in use.

    Not by torch.manual_seed, which writes down the stack it was called from for every kind of device that is not in
    use: a millisecond a call, several times a step.
    """
    seed = int(hashed(*keys)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
