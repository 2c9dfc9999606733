"""Random numbers of a GPU: every GPU has a generator of its own, and no operator takes another
device's."""

from __future__ import annotations

import threading
from typing import Any

import torch

from .devices import MACHINE, index_of

__all__ = ["check", "default", "draw", "seed_all"]

_defaults: dict[int, torch.Generator] = {}
_lock = threading.RLock()


def default(device: Any = None) -> torch.Generator:
    """The generator of a GPU."""
    index = index_of("cuda" if device is None else device)
    if index not in _defaults:
        _defaults[index] = torch.Generator(device=f"cuda:{index}").manual_seed(0)
    return _defaults[index]


def seed_all(seed: int) -> None:
    """Seed every GPU's generator, as `torch.manual_seed` does."""
    for index in range(MACHINE.gpus):
        made = torch.Generator(device=f"cuda:{index}").manual_seed(seed % 2**63)
        _defaults.setdefault(index, made).set_state(made.get_state())


def check(given: torch.Generator | None, index: int | None) -> None:
    """Raise RuntimeError when a generator is not of the device that an operator runs on."""
    expected = "cpu" if index is None else "cuda"
    if given is not None and given.device.type != expected:
        raise RuntimeError(
            f"Expected a '{expected}' device type for generator but found '{given.device.type}'"
        )


def draw(func: Any, args: Any, kwargs: Any, index: int) -> Any:
    """An operator that draws, with the GPU's generator or the one it was given."""
    given = kwargs.get("generator") or default(index)
    with _lock:
        if any(argument.name == "generator" for argument in func._schema.arguments):
            twin = torch.Generator()
            twin.set_state(given.get_state())
            out = func(*args, **{**kwargs, "generator": twin})
            given.set_state(twin.get_state())
            return out
        before = torch.get_rng_state()  # dropout and the like draw from the default generator only
        torch.set_rng_state(given.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            given.set_state(torch.get_rng_state())
            torch.set_rng_state(before)
