"""What a GPU can do, and how much of it kernels reach: the model's only numbers that are no counts.

Peaks are the vendor's data sheets (dense); the shares are what a large copy and a large product
reach on an H200, taken for all: 4.3 of 4.8 TB/s and 790 of 989 TFLOP/s. Nothing here was measured
by this package.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COPY", "CPU", "EXPECTED", "GPUS", "SHORTEST", "Gpu", "gpu_named"]

COPY, PRODUCT, EXACT = 0.9, 0.8, 0.85
"""Shares of the peaks that a floor is made with: bandwidth, tensor cores, float32."""
EXPECTED = {"memory": 0.9, "products": 0.9, "instructions": 0.75}
"""Share of its floor's rate that a kernel is expected to reach, by what bounds it."""
SHORTEST = 2.5e-6
"""Seconds from one kernel's start to the next one's in a stream, however little it does."""
CPU = {"torch": 6e-6, "ours": 25e-6}
"""Seconds of the CPU for a launch: an operator of torch with its autograd node, and one of ours
(`benchmarks/results/kernel-calls.json`, and 11 to 19 microseconds of Triton's launch)."""


@dataclass(frozen=True)
class Gpu:
    """name; arch: 90 for 9.0; bandwidth, bfloat16 and float32 rates: peaks a second;
    processors: each issues four instructions of a warp a cycle; clock: boost, Hz."""

    name: str
    arch: int
    bandwidth: float
    bfloat16: float
    float32: float
    processors: int
    clock: float

    @property
    def issued(self) -> float:
        """Instructions of a warp that all processors issue a second."""
        return 4 * self.processors * self.clock

    def rate(self, low: bool, tf32: bool = False) -> float:
        """Operations a second of products: on tensor cores, at half of bfloat16's rate in TF32, or
        in exact float32."""
        if low or tf32:
            return PRODUCT * self.bfloat16 / (1 if low else 2)
        return EXACT * self.float32


GPUS = {
    "h200": Gpu("H200 SXM", 90, 4.8e12, 989e12, 67e12, 132, 1.98e9),
    "h100": Gpu("H100 SXM", 90, 3.35e12, 989e12, 67e12, 132, 1.98e9),
    "a100": Gpu("A100 SXM 80 GB", 80, 2.04e12, 312e12, 19.5e12, 108, 1.41e9),
    "b200": Gpu("B200 SXM", 100, 8.0e12, 2250e12, 80e12, 148, 1.96e9),
}


def gpu_named(name: str) -> Gpu | None:
    """The GPU of a name as CUDA has it ("NVIDIA H200"), or None."""
    return next((gpu for key, gpu in GPUS.items() if key in name.lower().split()), None)
