"""Tensors that are sent together: a message has its price whatever its size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

__all__ = ["AT_ONCE", "groups"]

AT_ONCE = 1 << 24
"""Limit of the values, or bytes, of several tensors that are sent as one, unless one has more."""


def groups(
    sizes: Sequence[int], dtypes: Sequence[torch.dtype] | None = None
) -> Iterator[tuple[int, int]]:
    """Begin and end of groups of neighbours, of one dtype, with at most `AT_ONCE` values together.

    sizes: values of each.
    """
    begin = 0
    while begin < len(sizes):
        end, total = begin + 1, sizes[begin]
        while end < len(sizes) and total + sizes[end] <= AT_ONCE:
            if dtypes and dtypes[end] != dtypes[begin]:
                break
            total += sizes[end]
            end += 1
        yield begin, end
        begin = end
