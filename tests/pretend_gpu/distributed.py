"""Collectives under the name NCCL: gloo on the values, and no tensor of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.utils._pytree import tree_leaves

from .devices import current
from .tensor import PretendTensor
from .waits import wait

__all__ = ["install"]

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_to_all",
    "all_to_all_single",
    "broadcast",
    "gather",
    "irecv",
    "isend",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "send",
)
_nccl: set[str] = set()
"""Names of the groups that were asked to be of NCCL."""


def _is_nccl(group: Any) -> bool:
    group = group or dist.group.WORLD
    return getattr(group, "group_name", None) in _nccl


def _begun(begin: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(begin)
    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        nccl = backend is None or "nccl" in str(backend)
        begin("gloo" if nccl else backend, *args, **kwargs)
        _nccl.clear()
        if nccl:
            _nccl.add(c10d._get_default_group().group_name)

    return init_process_group


def _grouped(group: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(group)
    def new_group(
        ranks: Any = None, timeout: Any = None, backend: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        kwargs.pop("device_id", None)
        nccl = _is_nccl(None) if backend is None else "nccl" in str(backend)
        made = group(ranks, timeout, "gloo" if nccl else backend, *args, **kwargs)
        if nccl and isinstance(made, dist.ProcessGroup):
            _nccl.add(made.group_name)
        return made

    return new_group


def _gpu_only(name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(collective)
    def checked(*args: Any, **kwargs: Any) -> Any:
        groups = [x for x in (*args, *kwargs.values()) if isinstance(x, dist.ProcessGroup)]
        if _is_nccl(groups[0] if groups else None):
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor):
                    raise RuntimeError(f"No backend type associated with device type cpu ({name})")
        return collective(*args, **kwargs)

    return checked


def _object_device(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Objects are sent as tensors of the device that the group takes."""

    @wraps(ask)
    def device(group: Any = None) -> Any:
        return f"cuda:{current()}" if _is_nccl(group) else ask(group)

    return device


def _barrier(barrier: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(barrier)
    def waiting(group: Any = None, *args: Any, **kwargs: Any) -> Any:
        if _is_nccl(group):
            wait("barrier")
            kwargs.pop("device_ids", None)
        return barrier(group, *args, **kwargs)

    return waiting


def install() -> None:
    """Let `init_process_group` and `new_group` make groups of NCCL."""
    changed: dict[str, Callable[..., Any]] = {
        "init_process_group": _begun(dist.init_process_group),
        "new_group": _grouped(dist.new_group),
        "barrier": _barrier(dist.barrier),
        "_get_object_coll_device": _object_device(c10d._get_object_coll_device),
        "get_backend": _backend(dist.get_backend),
    }
    changed |= {name: _gpu_only(name, getattr(dist, name)) for name in COLLECTIVES}
    for name, function in changed.items():
        setattr(c10d, name, function)
        if hasattr(dist, name):
            setattr(dist, name, function)
    dist.is_nccl_available = lambda: True  # torch's own code would look for NCCL's classes


def _backend(ask: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(ask)
    def get_backend(group: Any = None) -> Any:
        return "nccl" if _is_nccl(group) else ask(group)

    return get_backend
