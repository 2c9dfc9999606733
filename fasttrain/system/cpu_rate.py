"""How fast this CPU is in bfloat16, beside float32: a measurement of at most a second.

    low = bfloat16_gain()
    low.gain          # 2.1: float32 takes 2.1 times as long
    low.wins

CPUs with AVX512_BF16 or AMX multiply bfloat16 two to sixteen times as fast, others more slowly than
float32, some by far; which is which shows in the time only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Gain", "bfloat16_gain"]

NEEDED = 1.3
"""Gain from which bfloat16 is taken: what surrounds the products gains less than they do."""
SECONDS = 0.8
HOPELESS = 3
"""Times as slow as float32: that bfloat16 is not measured again."""
LEAST, MOST = 4, 15
"""Measurements of each case."""

CASES = ((32, 64, 16, 128, 4, 2, 1), (32, 64, 8, 64, 3, 1, 1), (32, 64, 16, 192, 1, 1, 0))
"""Images, channels, size, output channels, kernel, stride, padding: of a head, of a U-Net."""


@dataclass(frozen=True)
class Gain:
    """float32_ms, bfloat16_ms: forward and backward of all cases, the least time of each."""

    float32_ms: float
    bfloat16_ms: float

    @property
    def gain(self) -> float:
        """How many times as fast bfloat16 is."""
        return self.float32_ms / self.bfloat16_ms

    @property
    def wins(self) -> bool:
        """Whether that is worth its rounding."""
        return self.gain >= NEEDED

    @property
    def dtype(self) -> str:
        """The one to compute in."""
        return "bfloat16" if self.wins else "float32"


def bfloat16_gain(seconds: float = SECONDS, clock: Callable[[], float] = time.process_time) -> Gain:
    """Measure convolutions, forward and backward, in both dtypes by turns, for `seconds`. The least
    CPU times count, which other work on the machine disturbs least: beside ten busy processes wall
    time found float32 as fast where bfloat16 takes half the time. Draws nothing from torch's global
    generator."""
    cases = [(_case(shape, torch.float32), _case(shape, torch.bfloat16)) for shape in CASES]
    best = [[float("inf"), float("inf")] for _ in cases]
    start = clock()
    for turn in range(MOST):
        for pair, least in zip(cases, best, strict=True):
            for k, run in enumerate(pair):
                if k and turn > 1 and least[1] > HOPELESS * least[0]:
                    continue
                before = clock()
                run()  # the first makes the kernel
                least[k] = min(least[k], clock() - before)
        if turn + 1 >= LEAST and clock() - start > seconds:
            break
    full, low = (1e3 * sum(least[k] for least in best) for k in (0, 1))
    return Gain(full, low)


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], None]:
    images, channels, size, out, kernel, stride, padding = shape
    generator = torch.Generator().manual_seed(0)

    def values(*sizes: int) -> Tensor:
        drawn = torch.randn(*sizes, generator=generator)
        return drawn.to(dtype, memory_format=torch.channels_last).requires_grad_()

    x, weight = values(images, channels, size, size), values(out, channels, kernel, kernel)

    def run() -> None:
        y = F.conv2d(x, weight, None, stride, padding)
        torch.autograd.grad(y.sum(), (x, weight))

    return run
