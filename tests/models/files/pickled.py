"""Objects for pickles that call functions, tie themselves in knots or lie about tensors."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.edm_files import Persistent, as_edm, constructed_with
from tests.models.files.edm_networks import SMALL, small


class Calls:
    """Something whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


class Built:
    """Something whose pickle is a call and a state."""

    def __init__(self, *what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return self.what


def legacy_bytes(value: Any) -> bytes:
    with io.BytesIO() as file:
        torch.save(value, file, _use_new_zipfile_serialization=False)
        return file.getvalue()


def ema(value: Any) -> dict[str, Any]:
    return {"ema": value}


def touch(marker: Path) -> Calls:
    return Calls(os.system, f"touch {marker}")


def in_module(marker: Path, **attributes: Any) -> Any:
    network = small()
    value = as_edm(network, "EDMPrecond", **constructed_with(network, **SMALL))
    value.meta["state"] |= attributes
    return ema(value)


def with_record(**changes: Any) -> dict[str, Any]:
    value = in_module(Path())
    value["ema"].meta |= changes
    return value


def of_weight(value: Any) -> dict[str, Any]:
    return ema(Persistent("EDMPrecond", {"_parameters": {"weight": value}, "_init_args": ()}))


def four_numbers() -> Any:
    storage = torch.zeros(4).untyped_storage()
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)


def tensor_of(shape: Any, strides: Any, offset: Any = 0) -> Calls:
    rebuild = torch._utils._rebuild_tensor_v2
    return Calls(rebuild, four_numbers(), offset, shape, strides, False, OrderedDict())


def module_cycle() -> dict[str, Any]:
    state: dict[str, Any] = {"_init_args": (), "_init_kwargs": {}}
    held = nn.ModuleDict()
    held.__dict__["_modules"] = OrderedDict(again=held)
    state["_modules"] = OrderedDict(model=held)
    return ema(Persistent("EDMPrecond", state))


def shared_modules() -> dict[str, Any]:
    """2^40 paths, were they walked."""
    held: Any = nn.ModuleDict()
    for _ in range(40):
        outer = nn.ModuleDict()
        outer.__dict__["_modules"] = OrderedDict(a=held, b=held)
        held = outer
    return ema(Persistent("EDMPrecond", {"_modules": {"model": held}}))


def shared_tables() -> dict[str, Any]:
    """A thousand modules with one table of parameters: work that no byte of the file stands for."""
    table = OrderedDict((f"p{index}", torch.zeros(1)) for index in range(3))
    held = OrderedDict((f"m{index}", nn.ModuleDict()) for index in range(1000))
    for module in held.values():
        module.__dict__["_parameters"] = table
    return ema(Persistent("EDMPrecond", {"_modules": held}))
