"""`run`: what every operator does that has a pretend tensor among its arguments or makes one.

It checks the devices, runs the operator on the CPU tensors inside and wraps what comes out. What is
changed in place, and `out=`, stays the tensor that it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import generators, rules
from .devices import current, index_of, touch
from .native import library
from .tensor import PretendTensor, inside, plain_data
from .waits import wait

__all__ = ["run"]


def run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operator, with pretend tensors among the arguments or a CUDA device among the options."""
    name = func._schema.name.partition("::")[2]
    leaves: list[Any] = []
    _each(leaves.append, args)
    _each(leaves.append, tuple(kwargs.values()))
    if name.startswith("_foreach_") and len(args[0]) > 1 and len(_devices(leaves)) > 1:
        return _one_by_one(func, args, kwargs)
    index = _device_of(func, name, leaves, kwargs)
    if index is not None:
        touch()
    generators.check(kwargs.get("generator"), index)
    _count_waits(func, name, args, kwargs, index)
    if name == "is_pinned":
        return False
    if name in ("_pin_memory", "pin_memory"):
        raise RuntimeError(f"cannot pin '{args[0].type()}' only dense CPU tensors can be pinned")
    body = _custom_body(func)
    if body is not None:  # a custom operator's own code runs with pretend tensors, as it would
        return body(*args, **kwargs)

    wrappers = {id(x.elem): x for x in leaves if isinstance(x, PretendTensor)}
    inner_args = _each(inside, args)
    inner_kwargs = {key: _each(inside, value) for key, value in kwargs.items()}
    if index is not None and kwargs.get("device") is not None:
        inner_kwargs["device"] = torch.device("cpu")
    if index is not None and inner_kwargs.get("pin_memory"):
        raise RuntimeError("Only dense CPU tensors can be pinned")
    out = _computed(func, inner_args, inner_kwargs, index)
    for x in wrappers.values():  # of another shape now: out=, resize_, set_, t_, ...
        if x.elem.shape != x.shape or x.elem.stride() != x.stride():
            plain_data.__set__(x, PretendTensor(x.elem, x.device.index))

    def outside(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, PretendTensor):
            return value
        if id(value) in wrappers:
            return wrappers[id(value)]
        if index is None or value.device.type != "cpu":
            return value
        return PretendTensor(value, index)

    return _each(outside, out)


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """`change` of each leaf of an operator's arguments or result, which are tuples and lists."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_each(change, x) for x in value])
    return change(value)


PretendTensor.run = run


def _devices(leaves: list[Any]) -> set[torch.device]:
    return {x.device for x in leaves if isinstance(x, torch.Tensor) and x.dim()}


def _device_of(func: Any, name: str, leaves: list[Any], kwargs: Any) -> int | None:
    """The GPU that the result is on; None for the CPU and for `meta`."""
    index = rules.common_device(func, name, leaves)
    device = kwargs.get("device")
    if device is not None:
        return index_of(device) if torch.device(device).type == "cuda" else None
    if index is None and not any(isinstance(x, torch.Tensor) for x in leaves):
        if kwargs.get("generator") is not None:
            return None  # a factory on the CPU that was given a generator of the GPU
        return current()  # a factory of the key CUDA whose device is not named
    return index


def _count_waits(func: Any, name: str, args: Any, kwargs: Any, index: int | None) -> None:
    if name in rules.WAITS:
        wait(rules.WAITS[name])
    elif name in rules.CPU_INDICES and index is not None:
        for x in args[1]:
            if x is not None and x.dtype in (torch.bool, torch.uint8):
                wait("mask as index")
            if x is not None and not isinstance(x, PretendTensor) and x.dim():
                wait("host to device")
    elif name == "_foreach_copy_":
        for to, source in zip(args[0], args[1], strict=True):
            place = to.device.index if isinstance(to, PretendTensor) else None
            kind = rules.copy_wait(func, (source,), {"non_blocking": any(args[2:])}, place)
            if kind is not None:
                wait(kind)
    elif name in rules.ANY_DEVICE:
        kind = rules.copy_wait(func, args, kwargs, index)
        if kind is not None:
            wait(kind)


def _computed(func: Any, args: Any, kwargs: Any, index: int | None) -> Any:
    """The operator on the CPU's tensors; what it allocates counts as the GPU's memory."""
    if index is None:
        return func(*args, **kwargs)
    before = library.pretend_hold(index)
    try:
        if torch.Tag.nondeterministic_seeded in func.tags:
            return generators.draw(func, args, kwargs, index)
        return func(*args, **kwargs)
    finally:
        library.pretend_hold(before)


def _one_by_one(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """What `_foreach_` does with lists of several devices, each place on its own."""
    found: list[Any] = []
    for i in range(len(args[0])):
        part = [[a[i]] if isinstance(a, (list, tuple)) else a for a in args]
        found += func(*part, **kwargs) or []
    return found


def _custom_body(func: Any) -> Any:
    from torch._library.custom_ops import OPDEFS

    found = OPDEFS.get(func._schema.name)
    return None if found is None else found._init_fn
