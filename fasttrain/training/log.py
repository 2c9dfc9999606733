"""Metrics of a run: `report` them anywhere, `collect` their means when a line is due.

    report("loss/generator", loss)                 # in the loop, no synchronisation
    stats.write(images, collect(world))            # -> stats.jsonl and TensorBoard

`stats.jsonl` holds one JSON object a line with `images`, the means since the line before, and
`crc32` of the line's text up to that, which detects a damaged line.
"""

from __future__ import annotations

import torch

from fasttrain.system.processes import World
from fasttrain_kernels import to_host

__all__ = ["collect", "report", "reset"]


_pending: dict[str, list[tuple[torch.Tensor, float]]] = {}


def report(name: str, value: torch.Tensor | float, weight: float = 1.0) -> None:
    """Add the mean of `value` to the metric's current window, weighted by its number of images.

    Every rank must report the same names with the same weights in all; nothing is read back from
    the device until `collect`.
    """
    mean = torch.as_tensor(value).detach().to(torch.float32).mean()
    _pending.setdefault(name, []).append((mean, weight))


def reset() -> None:
    """Clear the window, which a run that ended early may have left."""
    _pending.clear()


def collect(world: World) -> dict[str, float]:
    """Means over the window and all ranks, and start the next window.

    Values that are not finite are dropped: their step was skipped, and is counted there.
    """
    names = sorted(_pending)
    if not names:
        return {}
    means = iter(to_host(mean for name in names for mean, _ in _pending[name]))
    sums = []
    for name in names:
        # Losses may be on a GPU and norms on the host: combine them on the CPU.
        values = torch.stack([next(means) for _ in _pending[name]])
        weights = values.isfinite() * values.new_tensor([w for _, w in _pending[name]])
        sums.append(torch.stack([(values.nan_to_num(0, 0, 0) * weights).sum(), weights.sum()]))
    _pending.clear()
    totals = world.sum(torch.stack(sums).to(world.device if world.size > 1 else "cpu")).tolist()
    return {n: total / weight for n, (total, weight) in zip(names, totals, strict=True) if weight}
