"""A recipe on N GPUs: memory of a process, traffic, time and disk, at each ZeRO stage.

plan = make_plan(settings, gpus=8, nodes=4)
print(plan.table())
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fasttrain.analysis.planning.state import State

__all__ = ["Plan", "Stage"]


@dataclass(frozen=True)
class Stage:
    """Bytes on a process at one ZeRO stage of the generator."""

    generator: State
    discriminator: State
    gathered: int
    """Largest size of the weights that stage 3 gathers at a time."""
    buckets: int
    """Communication buffers."""
    sent: int
    """Traffic of an iteration."""


@dataclass(frozen=True)
class Plan:
    """Bytes, unless the name says otherwise. `peers`: processes that share each batch norm
    group."""

    gpus: int
    nodes: int
    batch: int
    micro_batch: int
    norm_group: int
    peers: int
    parameters: int
    trainable: int
    heads: int
    features: int
    projector: int
    activations: dict[str, int]
    graphs: bool
    """Whether passes are CUDA graphs, which keep their activations from step to step."""
    stages: dict[int, Stage]
    checkpoint: int
    base: int
    checkpoints: int
    images: int
    images_per_second: float | None
    rate_from: str
    """How the rate is known: measured, or counted for which GPU."""
    price: float | None
    """Of an hour of one GPU."""
    notes: tuple[str, ...]

    @property
    def world(self) -> int:
        return self.gpus * self.nodes

    @property
    def disk(self) -> int:
        return self.base + self.checkpoints * self.checkpoint

    @property
    def hours(self) -> float | None:
        rate = self.images_per_second
        return None if rate is None else self.images / rate / 3600

    @property
    def cost(self) -> float | None:
        hours = self.hours
        return None if hours is None or self.price is None else hours * self.world * self.price

    def memory(self, stage: int) -> int:
        """Total memory of a process at a stage."""
        at = self.stages[stage]
        state = at.generator.total + at.discriminator.total + at.gathered + at.buckets
        return state + self.features + self.projector + self.kept[1]

    @property
    def kept(self) -> tuple[str, int]:
        """The activations that are held at a time, at most: whose, and bytes."""
        if self.graphs:
            return "all, in CUDA graphs", sum(self.activations.values())
        return max(self.activations.items(), key=lambda item: item[1])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        memory = {str(stage): self.memory(stage) for stage in self.stages}
        more = {"disk": self.disk, "memory": memory, "hours": self.hours, "cost": self.cost}
        return json.loads(json.dumps(asdict(self) | more))

    def table(self) -> str:
        """The plan as plain text."""
        at = list(self.stages.values())
        name, kept = self.kept
        rows = {
            f"generator: {label}": [getattr(stage.generator, field) for stage in at]
            for field, label in LABELS.items()
        } | {
            "discriminator's heads: all of these": [stage.discriminator.total for stage in at],
            "weights gathered at a time, at most": [stage.gathered for stage in at],
            "communication buckets": [stage.buckets for stage in at],
            "feature networks, projectors": [self.features + self.projector] * len(at),
            f"activations (modelled): {name}": [kept] * len(at),
            "together": [self.memory(stage) for stage in self.stages],
            "sent in an iteration": [stage.sent for stage in at],
        }
        head = _line("a process, MB (10^6 bytes)", [f"ZeRO {stage}" for stage in self.stages])
        lines = [
            f"{self.world} processes ({self.gpus} GPUs on each of {self.nodes} nodes), batch "
            f"{self.batch}, micro-batch {self.micro_batch}, {self.batch // self.world} images each",
            f"generator {self.parameters:,} parameters, {self.trainable:,} of them train; "
            f"discriminator's heads {self.heads:,}",
            "",
            head,
            "-" * len(head),
            *(_line(label, [f"{v / 1e6:,.1f}" for v in values]) for label, values in rows.items()),
            "",
            f"disk: {self.checkpoint / 1e6:,.1f} MB a checkpoint, {self.checkpoints} of them at "
            f"most, and the base model {self.base / 1e6:,.1f} MB: {self.disk / 1e6:,.1f} MB",
            self._time(),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _time(self) -> str:
        if self.hours is None or self.images_per_second is None:
            return (
                "time: not known without a GPU (--gpu) or a measurement: fasttrain profile RECIPE "
                "on one of the GPUs, then --profile profile.json"
            )
        cost = "" if self.cost is None else f", {self.cost:,.0f} at {self.price:g} an hour"
        other = (
            "communication"
            if self.rate_from.startswith("measured")
            else "optimizers, communication"
        )
        return (
            f"time ({self.rate_from}): {self.images_per_second:,.0f} images a second, "
            f"{self.hours:,.1f} hours, {self.hours * self.world:,.0f} GPU-hours{cost} for "
            f"{self.images:,} images, {other}, evaluation and checkpoints not counted"
        )


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:46}" + "".join(f"{cell:>11}" for cell in cells)


LABELS = {
    "trained": "trained parameters",
    "frozen": "frozen parameters",
    "master": "float32 copy of DeepSpeed's",
    "moments": "Adam's moments",
    "gradients": "gradients",
    "average": "average (EMA)",
}
