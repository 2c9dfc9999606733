"""Triton's kernels under its interpreter, which reads and writes the values."""

from __future__ import annotations

from typing import Any

import torch

from .devices import touch
from .tensor import PretendTensor, inside

__all__ = ["install"]


def install() -> None:
    """Let the interpreter (`TRITON_INTERPRET=1`) take pretend tensors, and no tensors of the CPU.

    Nothing is done where there is no Triton.
    """
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        return
    call = GridExecutor.__call__

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        touch()
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        return call(self, *map(inside, args), **{k: inside(v) for k, v in kwargs.items()})

    GridExecutor.__call__ = launched
