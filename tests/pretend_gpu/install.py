"""Installation in this process, for good."""

from __future__ import annotations

from typing import Any

import torch

from . import cuda, devices, distributed, generators, launches
from .devices import MACHINE, index_of
from .native import library
from .operators import run
from .tensor import plain_data, set_data

__all__ = ["install"]

_kept: list[Any] = []


def install(
    gpus: int = 1,
    *,
    name: str = MACHINE.name,
    capability: tuple[int, int] = MACHINE.capability,
    memory: int = MACHINE.memory,
) -> None:
    """Give this process GPUs, from now on and for good; before anything uses one.

    memory: bytes that each of them holds. A second call changes nothing.
    """
    if _kept:
        return
    MACHINE.gpus, MACHINE.name = gpus, name
    MACHINE.capability, MACHINE.memory = capability, memory
    library.pretend_install(memory)
    devices.watch_forks()
    generators.seed_all(0)
    # A build without CUDA has no kernels of the dispatch key CUDA: all its operators fall back.
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(run, "CUDA")
    _kept.append(fallback)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.Tensor.data = property(plain_data.__get__, set_data)  # type: ignore[assignment]
    torch.Tensor.cuda = _cuda  # type: ignore[assignment, method-assign]
    cuda.install()
    launches.install()
    distributed.install()


def _cuda(
    self: torch.Tensor, device: Any = None, non_blocking: bool = False, **_: Any
) -> torch.Tensor:
    index = index_of("cuda" if device is None else device)
    return self.to(torch.device("cuda", index), non_blocking=non_blocking)
