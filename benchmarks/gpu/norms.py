"""Group norm at the shapes of ADM at 64x64 and NCSN++ at 64x64 and 32x32, batch 128.

eager: the chain as a network without fused ops has it, the norm in float32 between two casts, the
modulation and SiLU in the activations' dtype. library: torch's norm in that dtype, then the same;
apex's NHWC norm and Liger's where they are installed. "statistics": the partial statistics of x are
given, as a residual sum writes them, and only ours makes use of them.

Columns other than ours may return another memory format than x has, which the next convolution
would have to mend: in their favour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.case import (
    COMPILE,
    EAGER,
    OURS,
    Case,
    Inputs,
    Work,
    at_least_float32,
    nbytes,
    random,
)
from fasttrain_kernels import group_norm, partial_statistics

__all__ = ["norm_cases"]


class Norm(NamedTuple):
    """`inputs`: what is present beside x, weight and bias."""

    channels: int
    resolution: int
    inputs: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join([f"{self.channels}@{self.resolution}", *self.inputs, "silu"])


_MODULATED = ("scale", "shift")
_ADM = (
    Norm(192, 64, _MODULATED, ("adm",)),
    Norm(384, 32, _MODULATED, ("adm",)),
    Norm(576, 16, _MODULATED, ("adm",)),
    Norm(768, 8, _MODULATED, ("adm",)),
    Norm(384, 64, (), ("adm", "decoder")),  # norm0 after a concatenation: not modulated
    Norm(576, 32, (), ("adm", "decoder")),
)
_GIVEN = (Norm(384, 64, ("statistics",), ("adm given",)),)  # as concatenation passes them on
_NCSN = (Norm(128, 64, ("shift_in",), ("ncsnpp",)), Norm(256, 32, ("shift_in",), ("ncsnpp",)))
_QUICK = (
    Norm(24, 4, _MODULATED, ("adm",)),
    Norm(16, 4, ("shift_in",), ("ncsnpp",)),
    Norm(16, 4, ("statistics",), ("adm given",)),
)


def norm_cases(*, quick: bool) -> Iterator[Case]:
    """Most important first: the layout of the GPU default, then the other."""
    if quick:
        yield from (_case(norm, layout, 2) for norm in _QUICK for layout in ("NHWC", "NCHW"))
        return
    for layout, norms in (("NHWC", _ADM), ("NHWC", _GIVEN + _NCSN), ("NCHW", _ADM)):
        yield from (_case(norm, layout, 128) for norm in norms)


def _case(norm: Norm, layout: str, batch: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    channels, groups = norm.channels, max(1, min(32, norm.channels // 4))
    rows = tuple(name for name in norm.inputs if name != "statistics")

    def inputs(device: torch.device, seed: int) -> Inputs:
        draw = random(device, seed, dtype, layout)
        x = draw(batch, channels, norm.resolution, norm.resolution, mean=0.5, std=1.5)
        return {
            "x": x,
            "weight": draw(channels, mean=1.0, std=0.2, as_dtype=torch.float32),
            "bias": draw(channels, std=0.2, as_dtype=torch.float32),
            **{name: draw(batch, channels, std=0.5) for name in rows},
            **({"statistics": partial_statistics(x)} if "statistics" in norm.inputs else {}),
        }

    def ours(**arguments: Any) -> Tensor:
        return group_norm(groups=groups, **arguments)

    columns: dict[str, Callable[..., Any]] = {EAGER: _chain(_float32_norm, groups)}
    columns |= {COMPILE: columns[EAGER], "F.group_norm": _chain(_native_norm, groups)}
    columns |= {name: _chain(library, groups) for name, library in _installed().items()}
    return Case(
        "group_norm", norm.name, layout, dtype, inputs, {**columns, OURS: ours}, _work,
        gradients=("x", "weight", "bias", *rows), tags=norm.tags,
    )  # fmt: skip


def _work(inputs: Inputs, results: Any) -> Work:
    """x, the rows and given statistics in, y out; then dy, x and the rows in, a gradient of each
    but dy out."""
    given = nbytes(inputs["statistics"]) if "statistics" in inputs else 0
    there = nbytes(*inputs.values()) - given
    y = nbytes(results["y"])
    return Work(there + given + y, y + 2 * there)


_NormFunction = Callable[[Tensor, int, Tensor, Tensor], Tensor]


def _chain(norm: _NormFunction, groups: int) -> Callable[..., Tensor]:
    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shift_in: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        statistics: Tensor | None = None,  # of no use to these
    ) -> Tensor:
        if shift_in is not None:
            x = x + shift_in[:, :, None, None]
        y = norm(x, groups, weight, bias)
        if scale is not None and shift is not None:
            y = y * (scale[:, :, None, None] + 1) + shift[:, :, None, None]
        return F.silu(y)

    return run


def _float32_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(at_least_float32(x), groups, weight, bias, 1e-5).to(x.dtype)


def _native_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), 1e-5)


def _installed() -> dict[str, _NormFunction]:
    """Norms of libraries that import here. Where one cannot run, its cells hold the error."""

    def liger(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
        function = import_module("liger_kernel.ops.group_norm").LigerGroupNormFunction
        flat = x.contiguous().flatten(2)
        y = function.apply(flat, weight.to(x.dtype), bias.to(x.dtype), x.shape[1], groups, 1e-5)
        return y.view(x.shape)

    @cache
    def apex_module(groups: int, channels: int, device: torch.device) -> Any:
        module = import_module("apex.contrib.group_norm").GroupNorm(
            groups, channels, eps=1e-5, affine=True, device=device, dtype=torch.float32
        )
        del module.weight, module.bias  # parameters: ours take their place, with their gradients
        return module

    def apex(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
        module = apex_module(groups, x.shape[1], x.device)
        module.weight, module.bias = weight, bias
        return module(x.contiguous(memory_format=torch.channels_last))

    found: dict[str, _NormFunction] = {}
    for name, module, function in (
        ("liger", "liger_kernel.ops.group_norm", liger),
        ("apex", "apex.contrib.group_norm", apex),
    ):
        try:
            import_module(module)
        except ImportError:
            continue
        found[name] = function
    return found
