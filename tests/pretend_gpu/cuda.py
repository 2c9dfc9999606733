"""`torch.cuda` as far as fasttrain, its benchmarks and DeepSpeed call it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from . import devices, generators, streams
from .devices import MACHINE, index_of
from .native import library
from .waits import wait

__all__ = ["install"]


def _number(device: Any = None) -> int:
    return index_of("cuda" if device is None else device)


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def is_available() -> bool:
    if devices.count():
        devices.touch_driver()
    return devices.count() > 0


def _lazy_init() -> None:
    devices.touch()


def _lazy_call(function: Callable[[], Any], **_: Any) -> None:
    function()


def _exchange_device(index: int) -> int:
    before = devices.current()
    devices.set_current(index)
    return before


def synchronize(device: Any = None) -> None:
    _number(device)
    wait("synchronize")


def properties(device: Any = None) -> SimpleNamespace:
    _number(device)
    major, minor = MACHINE.capability
    return SimpleNamespace(
        name=MACHINE.name,
        major=major,
        minor=minor,
        total_memory=MACHINE.memory,
        multi_processor_count=132,
        L2_cache_size=50 << 20,
        warp_size=32,
        is_integrated=False,
        max_threads_per_multi_processor=2048,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=232448,
        regs_per_multiprocessor=65536,
        gcnArchName="",
        uuid="pretend",
    )


def memory_allocated(device: Any = None) -> int:
    """Live bytes, in CUDA's units of 512."""
    return int(library.pretend_allocated(_number(device)))


def max_memory_allocated(device: Any = None) -> int:
    return int(library.pretend_peak(_number(device)))


def reset_peak_memory_stats(device: Any = None) -> None:
    library.pretend_reset_peak(_number(device))


def memory_stats(device: Any = None) -> dict[str, int]:
    now, peak = memory_allocated(device), max_memory_allocated(device)
    found: dict[str, int] = {}
    for kind in ("allocated_bytes", "reserved_bytes", "active_bytes"):
        found |= {f"{kind}.all.current": now, f"{kind}.all.peak": peak}
    return found | {"num_alloc_retries": 0, "num_ooms": 0}


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return MACHINE.memory - memory_allocated(device), MACHINE.memory


def manual_seed(seed: int) -> None:
    generators.default().manual_seed(seed % 2**63)


def get_rng_state(device: Any = "cuda") -> torch.Tensor:
    return generators.default(device).get_state()


def set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
    generators.default(device).set_state(new_state.cpu())


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state(index) for index in range(devices.count())]


def set_rng_state_all(states: list[torch.Tensor]) -> None:
    for index, state in enumerate(states):
        set_rng_state(state, index)


def _functions() -> dict[str, Any]:
    """Attribute of `torch.cuda` -> what it is here."""
    return {
        "is_available": is_available,
        "is_initialized": devices.is_touched,
        "_is_in_bad_fork": devices.is_bad_fork,
        "is_bf16_supported": _always(True),
        "is_current_stream_capturing": _always(False),
        "init": _lazy_init,
        "_lazy_init": _lazy_init,
        "_lazy_call": _lazy_call,
        "ipc_collect": _nothing,
        "device_count": devices.count,
        "current_device": lambda: _number(),
        "set_device": devices.set_current,
        "_exchange_device": _exchange_device,
        "_maybe_exchange_device": _exchange_device,
        "get_device_name": lambda device=None: properties(device).name,
        "get_device_capability": lambda device=None: (
            properties(device).major,
            properties(device).minor,
        ),
        "get_device_properties": properties,
        "get_arch_list": lambda: ["sm_{}{}".format(*MACHINE.capability)],
        "can_device_access_peer": _always(True),
        "synchronize": synchronize,
        "Stream": streams.Stream,
        "Event": streams.Event,
        "current_stream": streams.current_stream,
        "default_stream": streams.Stream,
        "stream": streams.StreamContext,
        "mem_get_info": mem_get_info,
        "memory_allocated": memory_allocated,
        "max_memory_allocated": max_memory_allocated,
        "memory_reserved": memory_allocated,
        "max_memory_reserved": max_memory_allocated,
        "memory_stats": memory_stats,
        "reset_peak_memory_stats": reset_peak_memory_stats,
        "empty_cache": _nothing,
        "manual_seed": manual_seed,
        "manual_seed_all": generators.seed_all,
        "initial_seed": lambda: generators.default().initial_seed(),
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "get_rng_state_all": get_rng_state_all,
        "set_rng_state_all": set_rng_state_all,
    }


def install() -> None:
    """Put these in the place of what a build of torch without CUDA has."""
    for name, value in _functions().items():
        setattr(torch.cuda, name, value)
    torch.cuda.nccl.version = _always((2, 27, 5))
    for name in ("range_push", "range_pop", "range_start", "range_end", "mark"):
        setattr(torch.cuda.nvtx, name, _always(0))
    torch.version.cuda = "13.0"
