"""Where a program's tensors lie: activations share memory when they are not needed at once, weights
are stored once for all programs of a page.

    size = place(code, inputs, output)          # sets the offset of every buffer
    weights.bytes()                             # of the page's blob
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Buffer", "Ref", "Weights", "place"]

ALIGN = 4
"""Float32 values: a vector's."""


@dataclass(eq=False)
class Buffer:
    """Memory of `size` float32 values, at `offset` once it has been placed."""

    size: int
    offset: int = 0


@dataclass(frozen=True)
class Ref:
    """The place `offset` values after a buffer's start."""

    buffer: Buffer
    offset: int = 0


def place(code: Sequence[Sequence[Any]], inputs: Sequence[Ref], output: Ref) -> int:
    """Give every buffer an offset, such that no two overlap while both hold a value that is still
    to be read; return the size of all.

    First fit in the order of the first instructions. Inputs are held from the start, the output to
    the end.
    """
    spans: dict[Buffer, list[int]] = {ref.buffer: [-1, -1] for ref in inputs}
    for step, line in enumerate(code):
        for ref in line:
            if isinstance(ref, Ref):
                spans.setdefault(ref.buffer, [step, step])[1] = step
    spans.setdefault(output.buffer, [-1, -1])[1] = len(code)
    held: list[tuple[Buffer, int]] = []
    size = 0
    for buffer, (first, last) in sorted(spans.items(), key=lambda item: item[1][0]):
        held = [(other, until) for other, until in held if until >= first]
        start = 0
        for other, _ in sorted(held, key=lambda item: item[0].offset):
            if start + buffer.size <= other.offset:
                break
            start = max(start, -(-(other.offset + other.size) // ALIGN) * ALIGN)
        buffer.offset = start
        held.append((buffer, last))
        size = max(size, start + buffer.size)
    return -(-size // ALIGN) * ALIGN


@dataclass
class Weights:
    """Constant tensors of all programs, equal ones once. Those that bfloat16 holds exactly come
    first and take two bytes a value in the file."""

    tensors: dict[bytes, Tensor] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> Tensor:
        """The one tensor that stands for all equal ones."""
        tensor = tensor.detach().float().contiguous().flatten()
        return self.tensors.setdefault(_digest(tensor), tensor)

    def offset(self, tensor: Tensor) -> int:
        """Of a tensor that `add` returned, in float32 values; final when all are added."""
        if len(self._offsets) != len(self.tensors):
            self._offsets = self._placed()
        return self._offsets[id(tensor)]

    _offsets: dict[int, int] = field(default_factory=dict)

    def _placed(self) -> dict[int, int]:
        offsets, start = {}, 0
        for tensor in (*self.halves(), *self.wholes()):
            offsets[id(tensor)] = start
            start += tensor.numel()
        return offsets

    def halves(self) -> list[Tensor]:
        return [x for x in self.tensors.values() if _is_half(x)]

    def wholes(self) -> list[Tensor]:
        return [x for x in self.tensors.values() if not _is_half(x)]

    def counts(self) -> tuple[int, int]:
        """Values that are stored in two bytes and in four."""
        return sum(x.numel() for x in self.halves()), sum(x.numel() for x in self.wholes())

    def bytes(self) -> bytes:
        """The first, second, ... most significant byte of all values in bfloat16, then of those in
        float32: exponents lie side by side, which compresses well."""
        planes = []
        for tensors, kept in ((self.halves(), 2), (self.wholes(), 4)):
            if tensors:
                values = torch.cat(tensors).numpy().astype("<f4").view(np.uint8).reshape(-1, 4)
                planes += [values[:, 3 - k].tobytes() for k in range(kept)]
        return b"".join(planes)


def _is_half(x: Tensor) -> bool:
    return bool(torch.equal(x.to(torch.bfloat16).float(), x))


def _digest(x: Tensor) -> bytes:
    return hashlib.sha256(x.numpy().tobytes()).digest()
