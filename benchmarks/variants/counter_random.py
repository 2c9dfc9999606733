"""Variants of the counter-based draws. The size of a sample is no constant, so one compiled form
serves 3 x 64 x 64, 3 x 32 x 32 and all others whose elements divide by 16. A program reads one
index, so no load is wide; that the stores are is a test of `test_counter_random_kernel.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.compiled import Variant, signature_of
from fasttrain_kernels import counter_random as op

__all__ = ["variants"]


def variants() -> Iterator[Variant]:
    for normal, dtype, bits in (
        (True, "fp32", 24),
        (True, "bf16", 8),
        (False, "fp32", 24),
        (False, "fp16", 11),
    ):
        constants: dict[str, Any] = {"NORMAL": normal, "BITS": bits, "BLOCK": op._BLOCK}
        signature = signature_of(op._kernel, {"indices": "i64", "out": dtype}, constants)
        name = f"{'normal' if normal else 'uniform'}-{dtype}"
        yield Variant(op._kernel, "counter_draw", name, signature, constants, 4, wide=0)
