"""Seeded permutations that are the same on every machine and with every NumPy version.

NumPy promises that a bit generator's raw numbers and `SeedSequence` never change, but not that
`Generator.permutation` does not. So a permutation here is the sorting order of raw 64-bit numbers.

    permutation(1797, SHARD_WRITER, seed)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "EPOCH_SHARDS",
    "MIX",
    "RESAMPLED",
    "SAMPLE",
    "SHARD_WRITER",
    "SPLIT",
    "WINDOW",
    "permutation",
    "raw",
]

# What a permutation is for comes first in its key. `SeedSequence` pads short keys with zeros, so
# (1,) and (1, 0) would be the same key: no purpose is 0, and each has keys of one length.
SHARD_WRITER, EPOCH_SHARDS, WINDOW, SPLIT, RESAMPLED, MIX, SAMPLE = 1, 2, 3, 4, 5, 6, 7


def permutation(size: int, purpose: int, *key: int) -> npt.NDArray[np.int64]:
    """Return an int64 [size] permutation of 0..size-1: a function of its arguments alone.

    `key` holds integers >= 0, for example (seed, epoch).
    """
    return np.argsort(raw(size, purpose, *key), kind="stable").astype(np.int64, copy=False)


def raw(size: int, purpose: int, *key: int) -> npt.NDArray[np.uint64]:
    """Return uint64 [size] random numbers: a function of the arguments alone."""
    return np.random.PCG64(np.random.SeedSequence((purpose, *key))).random_raw(size)
