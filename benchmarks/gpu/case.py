"""A case: an op at one shape, the functions that compute it, and what it must move and compute.

    Case("resample2d", "down 192@64", "NHWC", inputs=..., columns={EAGER: ..., OURS: ...}, ...)

The functions of the columns take the inputs by name and return a tensor, or a tuple of them whose
first has gradients. The eager function also defines what is right: it runs on float64 inputs, and
must then compute in float64 throughout (`at_least_float32` does).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasttrain.analysis.profiling.operators import size_of

__all__ = [
    "AGAIN",
    "COMPILE",
    "COPY",
    "EAGER",
    "OURS",
    "Case",
    "Inputs",
    "Work",
    "at_least_float32",
    "competitors",
    "each",
    "in_layout",
    "nbytes",
    "random",
]

EAGER, COMPILE, OURS = "eager", "torch.compile", "ours"
AGAIN = "ours again"  # the same function once more: what differs is noise
COPY = "copy"  # of as many bytes as are counted

Inputs = dict[str, Any]


class Work(NamedTuple):
    """Bytes that must move at least (each input read once, each output written once), and
    floating-point operations where they are the bound."""

    forward_bytes: int
    backward_bytes: int = 0
    forward_flops: int = 0
    backward_flops: int = 0


@dataclass(frozen=True)
class Case:
    """op, name, layout, dtype: what the row is called.

    inputs: device, seed -> the arguments of the columns, random, the same for the same seed.
    columns: name -> function, or why there is none; `EAGER` and `OURS` are among them. That of
        `COMPILE` is compiled.
    work: inputs, results by name -> what is counted.
    gradients: names of the inputs whose gradients are taken.
    outputs: names of what the functions return.
    exact: inputs -> results by name in float64, where that is not eager's on float64 inputs.
    checked: samples whose errors are taken, where the samples are independent; None: all.
    hide_launch: see timing.py.
    """

    op: str
    name: str
    layout: str
    dtype: torch.dtype
    inputs: Callable[[torch.device, int], Inputs]
    columns: Mapping[str, Callable[..., Any] | str]
    work: Callable[[Inputs, Mapping[str, Tensor]], Work]
    gradients: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("y",)
    tags: tuple[str, ...] = ()
    exact: Callable[[Inputs], dict[str, Tensor]] | None = None
    checked: int | None = None
    hide_launch: bool = True
    facts: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        return f"{self.op} {self.name} {self.layout} {str(self.dtype).removeprefix('torch.')}"


def competitors(columns: Mapping[str, Any]) -> list[str]:
    """The columns that ours is held against."""
    return [name for name in columns if name not in (OURS, AGAIN, COPY)]


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def each(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`function` of a floating-point tensor; anything else as it is."""
    return function(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def nbytes(*tensors: Tensor) -> int:
    return sum(map(size_of, tensors))


def in_layout(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if layout == "NHWC" else x.contiguous()


def random(
    device: torch.device, seed: int, dtype: torch.dtype, layout: str = "NCHW"
) -> Callable[..., Tensor]:
    """`draw(*shape, mean=0, std=1)`: normal values from one generator, never zeros."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(
        *shape: int, mean: float = 0.0, std: float = 1.0, as_dtype: torch.dtype = dtype
    ) -> Tensor:
        values = torch.randn(*shape, device=device, generator=generator).mul_(std).add_(mean)
        return in_layout(values.to(as_dtype), layout if len(shape) == 4 else "NCHW")

    return draw
