"""From settings to a plan: memory, traffic, time and disk on a number of GPUs.

print(make_plan(settings, gpus=8, nodes=4).table())
"""

from __future__ import annotations

import json
import math
from pathlib import Path

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
from fasttrain.models.build import activation_dtype
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings
from fasttrain.system.errors import UserError
from fasttrain.training.engines.zero import json_config
from fasttrain.training.graphs import check_graphs

__all__ = ["make_plan"]


STAGES = (0, 1, 2, 3)

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
    `graphs` with groups that processes share, for a profile of another network, and for an unknown
    GPU.
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
        return world * _rate(profile, settings), "measured"
    if gpu is None:
        return None, ""
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu}: the speed model knows {', '.join(GPUS)}")
    total = expect(settings, GPUS[gpu], micro)["iteration"]
    source = f"counted for {GPUS[gpu].name}, not measured"
    if not total["issued"]:
        source += ", kernels by bytes alone: counted with another Triton"
    return settings.batch / (parts * total["seconds"]), source


def _rate(path: Path, settings: FinetuneSettings) -> float:
    """Images a second of one GPU in a profile of the same network."""
    try:
        profile = json.loads(path.read_text())
        network, rate = profile["settings"]["network"], profile["phases"]["images_per_second"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a profile: run `fasttrain profile RECIPE`, which writes profile.json"
        ) from None
    if network != settings.network.model_dump(mode="json"):
        raise UserError(
            f"{path} is of another network than the recipe's (a CPU measures a small one): run "
            f"`fasttrain profile` with the same recipe on a GPU"
        )
    return float(rate)
