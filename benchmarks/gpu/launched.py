"""Registers, spills and shared memory of our compiled kernels, read off those that a call launched.

with launched() as kernels:
    y = group_norm(x, groups=32)
kernels[0]["registers"]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fasttrain_kernels import dispatch

__all__ = ["launched"]


@contextmanager
def launched() -> Iterator[list[dict[str, Any]]]:
    """The compiled kernels of ours that are launched inside, filled on the way out. `run` returns
    what it launched in every version of Triton."""
    usage: list[dict[str, Any]] = []
    if not dispatch.HAVE_TRITON or dispatch.INTERPRETED:
        yield usage
        return
    from triton.runtime.jit import JITFunction

    seen: dict[int, tuple[str, Any]] = {}
    original = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = original(self, *args, **kwargs)
        if self.fn.__module__.startswith("fasttrain_kernels"):
            seen[id(kernel)] = (self.fn.__name__, kernel)
        return kernel

    JITFunction.run = run
    try:
        yield usage
    finally:
        JITFunction.run = original
        for name, kernel in seen.values():
            usage.append(
                {
                    "kernel": name,
                    "registers": getattr(kernel, "n_regs", None),
                    "spills": 4 * (getattr(kernel, "n_spills", None) or 0),  # counted in words
                    "shared_bytes": getattr(kernel.metadata, "shared", None),
                    "num_warps": getattr(kernel.metadata, "num_warps", None),
                }
            )
