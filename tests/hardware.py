"""Triton's interpreter with a GPU's arithmetic.

The interpreter computes with numpy, and in some places a GPU gives another result: NaN in a
maximum, the rounding to bfloat16, a register that no load has written. `hardware_semantics` puts
the GPU's results there. kernels/README.md lists the places, tests/kernels/test_hardware.py has the
proof of each, in PTX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime import interpreter

__all__ = ["hardware_semantics"]

tl: Any = interpreter.tl
Handle: Any = interpreter.TensorHandle
builder: Any = interpreter.InterpreterBuilder
convert: Any = interpreter._convert_float
load: Any = builder.create_masked_load
dot: Any = builder.create_dot
total: Any = interpreter.ReduceOps.sum


def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    """cvt.rn rounds to the nearest, ties to even, and knows one NaN. The interpreter truncates."""
    if (source, target) == (tl.bfloat16, tl.float32):
        return np.left_shift(data, 16, dtype=np.uint32)
    toward_zero = rounding == interpreter._ir.ROUNDING_MODE.RTZ
    if (source, target) != (tl.float32, tl.bfloat16) or toward_zero:
        return convert(data, source, target, rounding)
    bits = np.ascontiguousarray(data).view(np.uint32).reshape(data.shape)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(data), 0x7FFF, rounded).astype(np.uint16)


def masked_load(
    self: Any, pointers: Any, mask: Any, other: Any, cache: Any, eviction: Any, volatile: Any
) -> Any:
    """A register that no load has written holds anything: NaN, and the same bits for integers. The
    interpreter has zeros. A single number's `other` of 0 is lost on its way here, so those keep
    theirs."""
    if other is None and pointers.data.size > 1:
        type_ = pointers.get_element_ty()
        dtype = interpreter._get_np_dtype(type_)
        bits = np.full((*pointers.data.shape, dtype.itemsize), 0x7F, np.uint8)
        if dtype.kind == "f":
            bits[...] = 0xFF
        other = Handle(bits.view(dtype)[..., 0], type_)
    return load(self, pointers, mask, other, cache, eviction, volatile)


def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """One rounding: products of float32 are exact in float64."""
    exact = x.data.astype(np.float64) * y.data + z.data
    return Handle(exact.astype(z.data.dtype), z.dtype.scalar)


def to_integer(self: Any, source: Any, target: Any) -> Any:
    """cvt.rzi saturates, and NaN becomes 0. numpy gives the least integer for all of them."""
    dtype = interpreter._get_np_dtype(target)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    whole = np.trunc(np.nan_to_num(source.data.astype(np.float64), nan=0.0))
    inside = (whole > least) & (whole < float(most))
    edge = np.where(whole > 0, most, least).astype(dtype)
    return Handle(np.where(inside, np.where(inside, whole, 0).astype(dtype), edge), target.scalar)


def divided(self: Any, x: Any, y: Any) -> Any:
    """div.full: a finite divisor beyond 2^126 gives 0, and NaN for an infinite dividend."""
    if x.data.dtype != np.float32:
        return self.binary_op(x, y, np.divide)
    huge = np.isfinite(y.data) & (np.abs(y.data) > 2.0**126)
    beyond = np.where(np.isfinite(x.data), 0.0, np.nan)
    result = np.where(huge, beyond, x.data / y.data).astype(np.float32)
    return Handle(result, x.dtype.scalar)


def flushed(function: Any) -> Any:
    """Instructions that end in .ftz take subnormal numbers for zeros, and give zeros for them."""

    def zero(x: Any) -> Any:
        return np.where(np.abs(x) < np.finfo(np.float32).tiny, x * 0, x).astype(x.dtype)

    return lambda self, x: self.unary_op(x, lambda data: zero(function(zero(data))))


def product(self: Any, a: Any, b: Any, d: Any, precision: Any, most: Any) -> Any:
    """Products of bfloat16 blocks. The interpreter multiplies their bits, as integers."""
    return dot(self, _widened(a), _widened(b), d, precision, most)


def _widened(x: Any) -> Any:
    if x.dtype.scalar != tl.bfloat16:
        return x
    return Handle(convert_float(x.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)


def _refuse_bits(x: Any) -> None:
    if x.dtype.scalar == tl.bfloat16:
        raise TypeError("the interpreter would add or multiply bfloat16's bits: cast to float32")


def _checked(plain: Any) -> Any:
    def operation(self: Any, x: Any, y: Any) -> Any:
        _refuse_bits(x)
        return plain(self, x, y)

    return operation


def _sum(self: Any, x: Any) -> Any:
    _refuse_bits(x.handle)
    return total(self, x)


def hardware_semantics() -> None:
    """A GPU's results (sm_80 and later) in every launch of this process from now on."""
    interpreter._convert_float = convert_float  # type: ignore[assignment]
    builder.create_fdiv = _checked(divided)
    for name in ("create_fadd", "create_fsub", "create_fmul"):
        setattr(builder, name, _checked(getattr(builder, name)))
    builder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    builder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)
    builder.create_masked_load = masked_load
    builder.create_fma = fma
    builder.create_fp_to_si = builder.create_fp_to_ui = to_integer
    builder.create_sqrt = flushed(np.sqrt)
    builder.create_exp2 = flushed(np.exp2)
    builder.create_dot = product
    interpreter.ReduceOps.sum = _sum  # type: ignore[method-assign]
