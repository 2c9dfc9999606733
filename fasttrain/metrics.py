"""Numbers of a run: `report` them anywhere, `collect` their means when a line is due.

    report("loss/generator", loss)                 # in the loop, no synchronisation
    stats.write(images, collect(world))            # -> stats.jsonl and TensorBoard

`stats.jsonl` holds one JSON object a line with `images` and the means since the line before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fasttrain.checkpoint import write_atomic
from fasttrain.distributed import World
from fasttrain_kernels import to_host

__all__ = ["TIMES", "Stats", "collect", "read_stats", "report", "reset"]

TIMES = frozenset({"seconds", "data/waiting"})
"""What in a line of `stats.jsonl` is of the clock; all else two equal runs have in common."""

_pending: dict[str, list[tuple[torch.Tensor, float]]] = {}


def report(name: str, value: torch.Tensor | float, weight: float = 1.0) -> None:
    """Add the mean of `value` to the metric's current window, with a weight (the images it is of).

    Every rank must report the same names with the same weights in all; nothing is read back from
    the device until `collect`.
    """
    mean = torch.as_tensor(value).detach().to(torch.float32).mean()
    _pending.setdefault(name, []).append((mean, weight))


def reset() -> None:
    """Forget the window: what a run that ended early left behind."""
    _pending.clear()


def collect(world: World) -> dict[str, float]:
    """Means over the window and all ranks, and start the next window.

    What is not finite is left out: such a step was skipped, and is counted where it was.
    """
    names = sorted(_pending)
    if not names:
        return {}
    means = iter(to_host(mean for name in names for mean, _ in _pending[name]))
    sums = []
    for name in names:
        # Losses may come from a GPU and norms from the host: they meet on the CPU.
        values = torch.stack([next(means) for _ in _pending[name]])
        weights = values.isfinite() * values.new_tensor([w for _, w in _pending[name]])
        sums.append(torch.stack([(values.nan_to_num(0, 0, 0) * weights).sum(), weights.sum()]))
    _pending.clear()
    totals = world.sum(torch.stack(sums).to(world.device if world.size > 1 else "cpu")).tolist()
    return {n: total / weight for n, (total, weight) in zip(names, totals, strict=True) if weight}


class Stats:
    """`stats.jsonl` and `tensorboard/` of a run directory, cut back to `images` when it resumes."""

    def __init__(self, run: Path, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.path = run / "stats.jsonl"
        kept = [line for line in read_stats(run) if line["images"] <= images]
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=images + 1)

    def write(self, images: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"images": images, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, images)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_stats(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `stats.jsonl`; a last line cut short by a crash is left out."""
    path = run / "stats.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    read = []
    for line in lines:
        try:
            read.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return read
