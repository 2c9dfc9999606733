"""What the machine can do, by measurement: the two ceilings that every row is compared with."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.timing import Clock, Run, measure

__all__ = ["measure_rates"]


def measure_rates(clock: Clock, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Bytes/s of a large device-to-device copy, read plus written, and FLOP/s of a large square
    bfloat16 matrix product, both on random data."""
    numel, side = (1 << 20, 128) if quick else (1 << 29, 8192)
    source = torch.randn(numel, device=device).bfloat16()
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    runs = {
        "copy": Run(lambda: target.copy_(source)),
        "matrix": Run(lambda: torch.mm(a, b, out=product)),
    }
    rates: dict[str, Any] = {}
    work = {"copy": 2 * source.nbytes, "matrix": 2 * side**3}
    sizes = {"copy": source.nbytes, "matrix": side}
    for name, times in measure(runs, clock, seconds=0.2 if quick else 2.0).items():
        if isinstance(times, str):
            raise RuntimeError(f"the {name} rate could not be measured: {times}")
        rates[name] = {
            "per_second": work[name] / times.forward.median_ms * 1e3,
            "size": sizes[name],
            "median_ms": times.forward.median_ms,
            "p20_ms": times.forward.p20_ms,
            "p80_ms": times.forward.p80_ms,
        }
    return rates
