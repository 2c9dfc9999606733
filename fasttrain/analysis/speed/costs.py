"""Seconds of a launch: the floor, from its bytes, its operations and its instructions; and what is
expected."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from fasttrain.analysis.speed.keys import Variant, key_of
from fasttrain.analysis.speed.rates import COPY, CPU, EXPECTED, SHORTEST, Gpu
from fasttrain.analysis.speed.trace import Held, Launch
from fasttrain_kernels import dispatch

__all__ = ["Cost", "cost_of", "summed"]

TABLE = Path(__file__).with_name("issued.json")
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}
LOW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Cost:
    """Of one launch or of many: seconds of the GPU at least and expected, seconds of the CPU,
    launches, bytes, operations, instructions of warps (0 where none are counted), and what bounds
    the floor."""

    floor: float
    expected: float
    cpu: float
    launches: int
    bytes: int
    flops: int
    issued: int
    bound: str


def cost_of(launch: Launch, gpu: Gpu) -> Cost:
    flops = launch.flops or _attention(launch)
    issued = _issued(launch, gpu.arch)
    times = {
        "memory": launch.bytes / (COPY * gpu.bandwidth),
        "products": flops / gpu.rate(launch.dtype in LOW, launch.tf32),
        "instructions": issued / gpu.issued,
    }
    bound = max(times, key=lambda name: times[name])
    floor = times[bound]
    expected = max(SHORTEST, floor / EXPECTED[bound])
    cpu = CPU["torch" if launch.kernel is None else "ours"]
    bound = bound if floor > SHORTEST else "launch"
    return Cost(floor, expected, cpu, 1, launch.bytes, flops, issued, bound)


def summed(costs: Iterable[Cost]) -> Cost:
    """All of them; bound by what bounds most of the expected time."""
    costs = list(costs)
    bounds: dict[str, float] = {}
    for cost in costs:
        bounds[cost.bound] = bounds.get(cost.bound, 0.0) + cost.expected
    total: dict[str, Any] = {
        name: sum(getattr(c, name) for c in costs) for name in list(Cost.__annotations__)[:-1]
    }
    return Cost(**total, bound=max(bounds, key=lambda name: bounds[name], default="nothing"))


def _attention(launch: Launch) -> int:
    """Operations of the kernels of attention: two products forward, three for dq, four for dk and
    dv, each of S x S x C two to a multiply-add."""
    products = {"forward_kernel": 2, "dq_kernel": 3, "dkdv_kernel": 4}
    module, _, name = launch.name.partition(".")
    if module != "attention_kernels" or name not in products:
        return 0
    assert launch.arguments is not None
    tokens, channels = launch.arguments["S"], launch.arguments["C"]
    samples = launch.arguments["qkv"].shape[0]
    return int(2 * products[name] * samples * tokens**2 * channels)


def _issued(launch: Launch, arch: int) -> int:
    """Instructions of all warps of a launch, from the table of compiled kernels; 0 where it does
    not hold this variant, or this process has interpreted kernels, which have no key."""
    if launch.arguments is None or not isinstance(launch.kernel, _compiled()):
        return 0
    issued = _counts().get(f"sm_{arch}", {}).get(_key(launch, arch), 0)
    return int(issued * launch.arguments["num_warps"] * prod(launch.grid))


@cache
def _counts() -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = json.loads(TABLE.read_text())
    return counts


def _compiled() -> Any:
    return dispatch.triton.runtime.JITFunction if dispatch.HAVE_TRITON else ()


_keys: dict[Any, str] = {}


def _key(launch: Launch, arch: int) -> str:
    arguments = dict(launch.arguments or {})
    options: dict[str, Any] = {
        k: arguments.pop(k) for k in ("num_warps", "num_stages", "maxnreg") if k in arguments
    }
    constants, signature = {}, {}
    for parameter in launch.kernel.params:
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            constants[parameter.name], signature[parameter.name] = value, "constexpr"
        elif isinstance(value, Held):
            signature[parameter.name] = "*" + TYPES.get(value.dtype, "i64")
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    name = (launch.name, arch, str(constants), str(signature), str(options))
    if name not in _keys:
        stages, warps = options.pop("num_stages", 3), options.pop("num_warps")
        variant = Variant(
            launch.kernel, "", "", signature, constants, warps, 0, stages, options=options
        )
        _keys[name] = key_of(variant, arch)
    return _keys[name]
