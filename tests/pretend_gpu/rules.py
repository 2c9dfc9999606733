"""The rules of CUDA on devices: which tensors an operator takes together, and which operators make
the host wait."""

from __future__ import annotations

from typing import Any

import torch

from .tensor import PretendTensor

__all__ = ["ANY_DEVICE", "CPU_INDICES", "WAITS", "common_device", "copy_wait"]

ANY_DEVICE = {"copy_", "_to_copy", "_copy_from", "_foreach_copy_"}
"""Operators that go from one device to another."""
CPU_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operators that take indices from the CPU, too."""
CPU_SCALARS = {"masked_fill", "masked_fill_", "where", "fill_", "fill"}
"""Operators that take a tensor of no dimensions from the CPU, besides the pointwise ones."""
WAITS = {
    "_local_scalar_dense": "item",
    "equal": "equal",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "bincount": "bincount",
    "repeat_interleave": "repeat_interleave",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "_linalg_eigh": "linalg",
    "_linalg_svd": "linalg",
    "_linalg_check_errors": "linalg",
    "linalg_eig": "linalg",
}
"""Operators whose result, its size or its error the host needs at once."""
INTEGERS = (torch.int64, torch.int32, torch.bool, torch.uint8)


def _mixed(one: str, other: str, func: Any) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {one} and "
        f"{other}! ({func})"
    )


def common_device(func: Any, name: str, leaves: list[Any]) -> int | None:
    """The GPU that an operator runs on, or None for the CPU.

    leaves: its arguments. Raises RuntimeError when CUDA does not take them together.
    """
    on = {x.device.index for x in leaves if isinstance(x, PretendTensor)}
    if not on:
        return None
    if name in ANY_DEVICE:
        first = next(x for x in leaves if isinstance(x, torch.Tensor))
        return first.device.index if isinstance(first, PretendTensor) else None
    if len(on) > 1:
        one, other = sorted(on)[:2]
        raise _mixed(f"cuda:{one}", f"cuda:{other}", func)
    index: int = on.pop()
    scalars = torch.Tag.pointwise in func.tags or name in CPU_SCALARS | CPU_INDICES
    scalars = scalars or name.startswith("_foreach_")
    indices = name in CPU_INDICES and isinstance(leaves[0], PretendTensor)
    for x in leaves:
        if not isinstance(x, torch.Tensor) or isinstance(x, PretendTensor):
            continue
        if x.dim() == 0 and (scalars or getattr(x, "_is_wrapped_number", False)):
            continue
        if indices and x.dtype in INTEGERS:
            continue
        raise _mixed("cpu", f"cuda:{index}", func)
    return index


def copy_wait(func: Any, args: Any, kwargs: Any, index: int | None) -> str | None:
    """How a copy makes the host wait, or None.

    index: the GPU it goes to. A copy that is not asked to be non-blocking waits in both directions,
    and one of memory that is not page-locked may whatever it is asked.
    """
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    source = tensors[-1] if func._schema.name == "aten::copy_" else tensors[0]
    from_gpu, to_gpu = isinstance(source, PretendTensor), index is not None
    if from_gpu == to_gpu:
        return None
    at_once = bool(kwargs.get("non_blocking", False))
    if func._schema.name == "aten::copy_" and len(args) > 2:
        at_once = bool(args[2])
    if from_gpu:
        return None if at_once else "device to host"
    if source.numel() == 0 or (at_once and source.is_pinned()):
        return None
    return "pageable to device" if at_once else "host to device"
