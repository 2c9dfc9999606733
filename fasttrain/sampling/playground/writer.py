"""Instructions of a program as they are written.

writer = Writer()
out = writer.new((1, 32, 28, 28))
writer.emit("silu", x, out, 25088, out=out)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fasttrain.sampling.playground.memory import Buffer, Ref

__all__ = ["Unsupported", "Value", "Writer", "merged"]


class Unsupported(Exception):
    """An operator that the page does not have."""


@dataclass(frozen=True)
class Value:
    """A tensor in a buffer: `like` has its shape, strides and offset."""

    buffer: Buffer
    like: Tensor

    @property
    def ref(self) -> Ref:
        return Ref(self.buffer, int(self.like.storage_offset()))


@dataclass
class Writer:
    """The list of instructions."""

    code: list[list[Any]] = field(default_factory=list)

    def new(self, shape: torch.Size | tuple[int, ...]) -> Value:
        like = torch.empty(shape, device="meta")
        return Value(Buffer(like.numel()), like)

    def emit(self, op: str, *args: Any) -> None:
        self.code.append([op, *(x.ref if isinstance(x, Value) else x for x in args)])

    def contiguous(self, x: Value | Tensor) -> Value | Tensor:
        """The same values in order of their indices, copied where they are not."""
        if isinstance(x, Tensor):
            return x.contiguous()
        if x.like.is_contiguous():
            return x
        out = self.new(x.like.shape)
        self.copy(x, out)
        return out

    def copy(self, x: Value | Tensor, out: Value) -> None:
        """x into out, of the same shape, each with its strides."""
        x = x.contiguous() if isinstance(x, Tensor) else x
        like = x if isinstance(x, Tensor) else x.like
        rows = merged(like.shape, like.stride(), out.like.stride())
        if len(rows) > 3:
            raise Unsupported(f"a copy of {len(rows)} dimensions")
        rows = [(1, 0, 0)] * (3 - len(rows)) + rows
        sizes, steps, out_steps = zip(*rows, strict=True)
        self.emit("copy", x, out, *sizes, *steps, *out_steps)


def merged(shape: Any, *strides: Any) -> list[tuple[int, ...]]:
    """(size, stride, stride ...) of dimensions, without those of one element, neighbours that lie
    in order in all of the tensors as one."""
    rows: list[tuple[int, ...]] = []
    for size, *steps in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if rows and all(a == size * b for a, b in zip(rows[-1][1:], steps, strict=True)):
            rows[-1] = (rows[-1][0] * size, *steps)
        else:
            rows.append((size, *steps))
    return rows
