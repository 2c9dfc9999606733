"""From settings to a plan: memory, traffic, time and disk on a number of GPUs.

print(make_plan(settings, gpus=8, nodes=4).table())
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fasttrain.analysis.planning.activations import discriminator_bytes, generator_bytes
from fasttrain.analysis.planning.norms import groups_of, statistics_sent
from fasttrain.analysis.planning.plan import Plan, Stage
from fasttrain.analysis.planning.sizes import Sizes, bytes_of, sizes_of
from fasttrain.analysis.planning.state import state_of
from fasttrain.analysis.planning.traffic import sent
from fasttrain.analysis.speed.model import expect
from fasttrain.analysis.speed.networks import discriminator_of, generator_of
from fasttrain.analysis.speed.rates import GPUS
from fasttrain.checkpoints.rates import flat
from fasttrain.evaluation.protocol import UNREADABLE
from fasttrain.models.build import activation_dtype
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings
from fasttrain.system.errors import UserError
from fasttrain.training.engines.zero import json_config
from fasttrain.training.graphs import check_graphs

__all__ = ["make_plan"]


STAGES = (0, 1, 2, 3)

TIMED = (
    *("network", "freeze", "adapt", "sigma_mid", "gradient_through", "reuse_fakes", "reward"),
    *("discriminator", "r1", "r2", "precision", "kernels", "memory_format", "recompute_norms"),
    *("compile", "graphs"),
)
"""Settings that the time of an iteration depends on, besides its batch."""
FREE = {"class_embedding", "decay", "norm_group", "optimizer", "sigma", "weight"}
"""Parts of them that it does not depend on."""

PERSISTENT = 100_000
"""DeepSpeed's own `stage3_param_persistence_threshold`."""


def make_plan(
    settings: FinetuneSettings,
    *,
    gpus: int = 1,
    nodes: int = 1,
    profile: Path | None = None,
    device: str = "cuda",
    gpu: str | None = None,
    price: float | None = None,
) -> Plan:
    """Plan `settings` on `nodes` machines with `gpus` GPUs each.

    profile: a `profile.json` of `fasttrain profile`. device: decides `auto` precisions. gpu: a name
    of `fasttrain.analysis.speed.rates.GPUS`, whose time is computed without a profile.
    price: of an hour of one GPU.

    Raises UserError when the batch or its batch norm groups do not divide over the processes, for
    `graphs` with groups that processes share, for a profile of another iteration or of a CPU, and
    for an unknown GPU.
    """
    world, target = gpus * nodes, torch.device(device)
    peers, notes = groups_of(settings, world)
    if settings.graphs:
        check_graphs(target, peers > 1)
    low, d_low = (activation_dtype(s, target) for s in (settings, settings.discriminator))
    generator, judge = sizes_of(generator_of(settings)), discriminator_of(settings)
    heads = sizes_of(judge.heads)
    share = settings.batch // world
    micro = min(settings.micro_batch or share, share)
    parts = math.ceil(share / micro)
    rate, source = _time(settings, world, micro, parts, profile, gpu)
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
        graphs=settings.graphs,
        stages=stages,
        checkpoint=checkpoint,
        base=4 * generator.total + generator.buffers,
        checkpoints=settings.checkpoint.keep
        + 2,  # plus the best one, and one that is being written
        images=settings.images,
        images_per_second=rate,
        rate_from=source,
        price=price,
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
    """`parts`: micro-batches; `statistics`: bytes sent for batch norm. The heads are at the same
    stage, at most 2."""
    d_stage = min(stage, 2)
    zero, d_zero = (
        json_config(settings.engine, s, sizes.trainable)["zero_optimization"]
        for s, sizes in ((stage, generator), (d_stage, heads))
    )
    kept_whole = zero.get("stage3_param_persistence_threshold", PERSISTENT)
    whole = 4 * generator.trainable + frozen_bytes * sum(generator.frozen)
    lazy = settings.lazy_interval
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
    """Forward and backward passes of the generator in an iteration; each gathers its weights."""
    forward = Sampler.of(settings).evaluations
    backward = forward if settings.gradient_through == "both" else 1
    return forward * (1 if settings.reuse_fakes else 2) + backward


def _time(
    settings: FinetuneSettings,
    world: int,
    micro: int,
    parts: int,
    profile: Path | None,
    gpu: str | None,
) -> tuple[float | None, str]:
    """Images a second of all processes, and where that is from: a measurement, else the model."""
    if profile is not None:
        rate, source = _measured(profile, settings, micro)
        return world * rate, source
    if gpu is None:
        return None, ""
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu}: the speed model knows {', '.join(GPUS)}")
    total = expect(settings, GPUS[gpu], micro)["iteration"]
    source = f"counted for {GPUS[gpu].name}, not measured"
    if not total["issued"]:
        source += ", kernels by bytes alone: counted with another Triton"
    return settings.batch / (parts * total["seconds"]), source


def _measured(path: Path, settings: FinetuneSettings, micro: int) -> tuple[float, str]:
    """Images a second of one GPU in a profile of the same iteration, and where they are from.

    Raises UserError for a profile of a CPU, or of other settings that take another time.
    """
    try:
        profile = json.loads(path.read_text())
        rate, machine = profile["phases"]["images_per_second"], profile["machine"]
        there, batch = timed(profile["settings"]), profile["configuration"]["batch"]
        rate, batch, device = float(rate), int(batch), str(machine["device"])
    except UNREADABLE:
        raise UserError(
            f"{path} is not a profile: run `fasttrain profile RECIPE`, which writes profile.json"
        ) from None
    if "capability" not in machine:
        raise UserError(
            f"{path} is of a CPU, {device}: run `fasttrain profile` with the recipe on a GPU"
        )
    here = timed(settings.model_dump(mode="json"))
    other = [
        name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)
    ]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        differ = [f"{name}={there.get(name)}, here {here.get(name)}" for name in other[:3]]
        raise UserError(
            f"{path} is of another iteration than the recipe's ({'; '.join(differ)}{more}): run "
            f"`fasttrain profile` with the same recipe and settings on a GPU"
        )
    batches = "" if batch == micro else f" at micro-batches of {batch}, here they are {micro}"
    return rate, f"measured on {device}{batches}"


def timed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that an iteration's time depends on, by name: where weights are from does not
    matter, nor a penalty's size, and a profile divides its batch into groups of its own."""
    found = flat({name: settings[name] for name in TIMED if name in settings})
    found["discriminator.backbones"] = [
        {name: value for name, value in backbone.items() if name != "weights"}
        for backbone in found["discriminator.backbones"]
    ]
    for name in ("r1.gamma", "r2.gamma"):
        found[name] = found[name] > 0
    return {name: value for name, value in found.items() if not FREE & set(name.split("."))}
