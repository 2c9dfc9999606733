"""A recipe on so many GPUs: memory a process, traffic, time and disk, at each ZeRO stage.

plan = make_plan(settings, gpus=8, nodes=4)
print(plan.table())
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fasttrain.deepspeed_engine import json_config
from fasttrain.errors import UserError
from fasttrain.models import activation_dtype
from fasttrain.planning.activations import discriminator_bytes, generator_bytes
from fasttrain.planning.norms import groups_of, statistics_sent
from fasttrain.planning.sizes import Sizes, bytes_of, discriminator_of, generator_of, sizes_of
from fasttrain.planning.state import State, state_of
from fasttrain.planning.traffic import sent
from fasttrain.sampler import Sampler
from fasttrain.settings import FinetuneSettings

__all__ = ["Plan", "Stage", "make_plan"]

STAGES = (0, 1, 2, 3)
PERSISTENT = 100_000
"""DeepSpeed's own `stage3_param_persistence_threshold`."""


@dataclass(frozen=True)
class Stage:
    """Bytes a process at one ZeRO stage of the generator."""

    generator: State
    discriminator: State
    gathered: int
    """Of weights that stage 3 gathers at a time, at most."""
    buckets: int
    """Of communication buffers."""
    sent: int
    """In an iteration."""


@dataclass(frozen=True)
class Plan:
    """Bytes, unless the name says something else. `peers`: processes that share each batch norm
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
    stages: dict[int, Stage]
    checkpoint: int
    base: int
    checkpoints: int
    images: int
    images_per_second: float | None
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

    def memory(self, stage: int) -> int:
        """All of a process at a stage."""
        at = self.stages[stage]
        state = at.generator.total + at.discriminator.total + at.gathered + at.buckets
        return state + self.features + self.projector + max(self.activations.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        memory = {str(stage): self.memory(stage) for stage in self.stages}
        more = {"disk": self.disk, "memory": memory, "hours": self.hours}
        return json.loads(json.dumps(asdict(self) | more))

    def table(self) -> str:
        """All of it as plain text."""
        at = list(self.stages.values())
        name, kept = max(self.activations.items(), key=lambda item: item[1])
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
                "time: not known without a profile: fasttrain profile RECIPE on one of the GPUs, "
                "then --profile profile.json"
            )
        return (
            f"time: {self.images_per_second:,.0f} images a second, {self.hours:,.1f} hours, "
            f"{self.hours * self.world:,.0f} GPU-hours for {self.images:,} images, communication, "
            f"evaluation and checkpoints not counted"
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


def make_plan(
    settings: FinetuneSettings,
    *,
    gpus: int = 1,
    nodes: int = 1,
    profile: Path | None = None,
    device: str = "cuda",
) -> Plan:
    """Plan `settings` on `nodes` machines with `gpus` GPUs each.

    profile: a `profile.json` of `fasttrain profile`. device: what `auto` precisions are for.

    Raises UserError when the batch or its batch norm groups do not divide over so many processes,
    or for a profile of something else.
    """
    world, target = gpus * nodes, torch.device(device)
    peers, notes = groups_of(settings, world)
    low, d_low = (activation_dtype(s, target) for s in (settings, settings.discriminator))
    generator, judge = sizes_of(generator_of(settings)), discriminator_of(settings)
    heads = sizes_of(judge.heads)
    share = settings.batch // world
    micro = min(settings.micro_batch or share, share)
    parts = math.ceil(share / micro)
    statistics = statistics_sent(settings, judge, peers)

    stages = {
        stage: _stage(settings, stage, generator, heads, world, parts, low.itemsize, statistics)
        for stage in STAGES
    }
    layout = "channels_last" if target.type == "cuda" else "contiguous"
    formats = {"memory_format": layout} if settings.memory_format == "auto" else {}
    as_there = settings.model_copy(
        update={"precision": str(low).removeprefix("torch."), "kernels": "triton", **formats}
    )
    kept = discriminator_bytes(as_there, judge, d_low)
    activations = {
        "generator's step": micro * (generator_bytes(as_there) + kept["step"]),
        "discriminator's step": micro * kept["own"],
        "exact R1": micro * kept["r1"],
    }
    projector = sum(bytes_of(t) for t in judge.projectors.state_dict().values())
    checkpoint = 16 * generator.trainable + generator.buffers + 12 * heads.trainable
    checkpoint += heads.buffers + projector
    return Plan(
        gpus=gpus,
        nodes=nodes,
        batch=settings.batch,
        micro_batch=micro,
        norm_group=settings.discriminator.norm_group,
        peers=peers,
        parameters=generator.total,
        trainable=generator.trainable,
        heads=heads.trainable,
        features=d_low.itemsize * sum(p.numel() for f in judge.features for p in f.parameters()),
        projector=projector,
        activations=activations,
        stages=stages,
        checkpoint=checkpoint,
        base=4 * generator.total + generator.buffers,
        checkpoints=settings.checkpoint.keep + 2,  # the best one, and one that is being written
        images=settings.images,
        images_per_second=None if profile is None else world * _rate(profile, settings),
        notes=notes,
    )


def _stage(
    settings: FinetuneSettings,
    stage: int,
    generator: Sizes,
    heads: Sizes,
    world: int,
    parts: int,
    frozen_bytes: int,
    statistics: int,
) -> Stage:
    """`parts`: micro-batches; `statistics`: bytes sent of the batch norms'. The heads are at the
    same stage, but for 3, unless set apart."""
    apart = settings.engine.discriminator_zero_stage
    d_stage = min(stage, 2) if apart is None else apart
    zero, d_zero = (
        json_config(settings.engine, optimizer, s, sizes.trainable)["zero_optimization"]
        for optimizer, s, sizes in (
            (settings.generator, stage, generator),
            (settings.discriminator.optimizer, d_stage, heads),
        )
    )
    kept_whole = zero.get("stage3_param_persistence_threshold", PERSISTENT)
    whole = 4 * generator.trainable + frozen_bytes * sum(generator.frozen)
    lazy = settings.r1.lazy_interval
    steps = 1 + (1 / lazy if lazy else 0)
    common = {"frozen_bytes": frozen_bytes, "kept_whole": kept_whole}
    passes = parts * _passes(settings)
    return Stage(
        generator=state_of(generator, stage, world, **common),
        discriminator=state_of(heads, d_stage, world, averaged=False),
        gathered=min(4 * zero["stage3_max_live_parameters"], whole) if stage == 3 else 0,
        buckets=sum(
            4 * z["reduce_bucket_size"] for z, s in ((zero, stage), (d_zero, d_stage)) if s >= 2
        ),
        sent=sent(generator, stage, world, backwards=parts, passes=passes, **common)
        + sent(heads, d_stage, world, steps=steps, backwards=steps * parts)
        + statistics,
    )


def _passes(settings: FinetuneSettings) -> int:
    """Of the generator in an iteration, forward and backward, each of which gathers its weights."""
    forward = Sampler.of(settings).evaluations
    backward = forward if settings.gradient_through == "both" else 1
    return forward * (1 if settings.reuse_fakes else 2) + backward


def _rate(path: Path, settings: FinetuneSettings) -> float:
    """Images a second of one GPU in a profile of the same network."""
    try:
        profile = json.loads(path.read_text())
        network, rate = profile["settings"]["network"], profile["phases"]["images_per_second"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a profile: make one with `fasttrain profile RECIPE`, which writes "
            f"profile.json"
        ) from None
    if network != settings.network.model_dump(mode="json"):
        raise UserError(
            f"{path} is of another network than the recipe's (a CPU measures a small one): make it "
            f"on a GPU with `fasttrain profile` and the same recipe"
        )
    return float(rate)
