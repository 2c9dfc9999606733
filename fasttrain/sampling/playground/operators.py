"""PyTorch's operators as calls of `web/kernels.c`, for one image.

OPERATORS["silu"](writer, shape_of_the_result, x)      # -> a Value
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fasttrain.sampling.playground.writer import Unsupported, Value, Writer, merged

__all__ = ["OPERATORS"]

Operand = Value | Tensor
COLUMNS = 8
"""Outputs that a matrix product makes at once: its scratch memory holds their inputs."""


def _convolution(
    writer: Writer,
    shape: torch.Size,
    x: Operand,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    x, out = writer.contiguous(x), writer.new(shape)
    channels, *area = _like(x).shape[1:]
    each, k = weight.shape[1:3]
    if len({*weight.shape[2:]}) > 1 or any(len({*pair}) > 1 for pair in (stride, padding)):
        raise Unsupported("it needs a convolution that is not square")
    if any(d != 1 for d in dilation) or (transposed and bias is not None):
        raise Unsupported("it needs a convolution of another kind")
    sizes = (k, stride[0], padding[0], *shape[2:])
    if groups == 1 and not transposed:
        scratch = writer.new((COLUMNS * each * k * k,))
        ends = (_or_zero(bias), out, scratch, each, *area, shape[1])
        writer.emit("conv", x, weight, *ends, *sizes)
    elif groups == channels == shape[1]:
        ends = (_or_zero(bias), out, int(transposed), channels, *area)
        writer.emit("depthwise", x, weight, *ends, *sizes)
    else:
        raise Unsupported(f"it needs a convolution of {groups} groups")
    return out


def _group_norm(
    writer: Writer,
    shape: torch.Size,
    x: Operand,
    weight: Operand,
    bias: Operand,
    batch: int,
    channels: int,
    area: int,
    groups: int,
    eps: float,
) -> Value:
    x, weight, bias = (writer.contiguous(each) for each in (x, weight, bias))
    out = writer.new(shape)
    writer.emit("group_norm", x, weight, bias, out, channels, area, groups, eps, 0)
    return out


def _silu(writer: Writer, shape: torch.Size, x: Operand) -> Value:
    x, out = writer.contiguous(x), writer.new(shape)
    writer.emit("silu", x, out, out.like.numel())
    return out


def _addmm(
    writer: Writer, shape: torch.Size, bias: Tensor | None, x: Operand, weight: Tensor
) -> Value:
    """A linear layer, whose weight comes transposed."""
    x, out = writer.contiguous(x), writer.new(shape)
    ins, outs = weight.shape
    if _like(x).numel() != ins or isinstance(weight, Value):
        raise Unsupported("it needs a linear layer on more than one vector")
    writer.emit("linear", x, weight.t().contiguous(), _or_zero(bias), out, ins, outs)
    return out


def _mm(writer: Writer, shape: torch.Size, x: Operand, weight: Tensor) -> Value:
    return _addmm(writer, shape, None, x, weight)


def _bmm(writer: Writer, shape: torch.Size, x: Operand, y: Operand) -> Value:
    """A product of matrices for each head of an attention."""
    x, out = writer.contiguous(x), writer.new(shape)
    if not isinstance(x, Value) or not isinstance(y, Value):
        raise Unsupported("it needs products with constant matrices")
    heads, rows, depth = x.like.shape
    scratch = writer.new((COLUMNS * depth,))
    for head in range(heads):
        one, other, target = (Value(each.buffer, each.like[head]) for each in (x, y, out))
        writer.emit("matmul", one, other, target, scratch, rows, depth, shape[2],
                    *other.like.stride())  # fmt: skip
    return out


def _softmax(writer: Writer, shape: torch.Size, x: Operand, dim: int, *_: Any) -> Value:
    x, out = writer.contiguous(x), writer.new(shape)
    if dim not in (-1, len(shape) - 1):
        raise Unsupported("it needs a softmax over other than the last dimension")
    writer.emit("softmax", x, out, math.prod(shape[:-1]), shape[-1], 1.0)
    return out


def _cat(writer: Writer, shape: torch.Size, parts: Sequence[Operand], dim: int = 0) -> Value:
    out = writer.new(shape)
    start = 0
    for part in parts:
        size = _like(part).shape[dim]
        writer.copy(part, Value(out.buffer, out.like.narrow(dim, start, size)))
        start += size
    return out


def _binary(number: int, commutes: bool) -> Callable[..., Value]:
    def lower(writer: Writer, shape: torch.Size, x: Any, y: Any, *, alpha: float = 1) -> Value:
        if alpha != 1:
            raise Unsupported("it needs a sum with a factor")
        x, y = (_tensor(each) for each in (x, y))
        if commutes and isinstance(x, Tensor):
            x, y = y, x
        out = writer.new(shape)
        rows = _rows(out, x, y)
        if len(rows) > 2:
            x, y = (writer.contiguous(each) for each in (x, y))
            rows = _rows(out, x, y)
        rows = [(1, 0, 0, 0)] * (2 - len(rows)) + rows
        if len(rows) > 2:
            raise Unsupported(f"it needs arithmetic on {len(rows)} dimensions")
        (a, xa, ya, _), (b, xb, yb, _) = rows
        writer.emit("binary", number, x, y, out, a, b, xa, xb, ya, yb)
        return out

    return lower


def _rows(out: Value, *operands: Operand) -> list[tuple[int, ...]]:
    wide = [_like(each).expand(out.like.shape) for each in operands]
    return merged(out.like.shape, *(each.stride() for each in wide), out.like.stride())


def _wave(number: int) -> Callable[..., Value]:
    def lower(writer: Writer, shape: torch.Size, x: Operand) -> Value:
        x, out = writer.contiguous(x), writer.new(shape)
        writer.emit("wave", number, x, out, out.like.numel())
        return out

    return lower


def _avg_pool2d(writer: Writer, shape: torch.Size, x: Operand, kernel: Any, *rest: Any) -> Value:
    stride = tuple(rest[0]) if rest and rest[0] else (2, 2)
    if tuple(kernel) != (2, 2) or stride != (2, 2) or rest[1:]:
        raise Unsupported("it needs an average over other than 2 x 2 pixels")
    return _resized(writer, shape, "halve", x)


def _upsample(writer: Writer, shape: torch.Size, x: Operand, *_: Any) -> Value:
    if [2 * side for side in _like(x).shape[2:]] != list(shape[2:]):
        raise Unsupported("it needs an enlargement other than by two")
    return _resized(writer, shape, "twice", x)


def _resized(writer: Writer, shape: torch.Size, op: str, x: Operand) -> Value:
    x, out = writer.contiguous(x), writer.new(shape)
    writer.emit(op, x, out, *_like(x).shape[1:])
    return out


def _same(writer: Writer, shape: torch.Size, x: Operand, *_: Any, **__: Any) -> Operand:
    return writer.contiguous(x)


def _like(x: Operand) -> Tensor:
    return x if isinstance(x, Tensor) else x.like


def _tensor(x: Any) -> Operand:
    if isinstance(x, Tensor):
        return x.contiguous()
    return x if isinstance(x, Value | Tensor) else torch.tensor(float(x))


def _or_zero(x: Tensor | None) -> Tensor | int:
    return 0 if x is None else x


OPERATORS: dict[str, Callable[..., Any]] = {
    "_safe_softmax": _softmax,
    "_softmax": _softmax,
    "add": _binary(0, True),
    "addmm": _addmm,
    "avg_pool2d": _avg_pool2d,
    "bmm": _bmm,
    "cat": _cat,
    "clone": _same,
    "convolution": _convolution,
    "cos": _wave(0),
    "div": _binary(3, False),
    "mm": _mm,
    "mul": _binary(2, True),
    "native_group_norm": _group_norm,
    "silu": _silu,
    "sin": _wave(1),
    "sub": _binary(1, False),
    "upsample_nearest2d": _upsample,
}
"""By the operator's name in ATen."""
