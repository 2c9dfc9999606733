"""Files that a fine-tuning run writes at its start: the audit of trained parameters, and the
discriminator's feature networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.models.audit import audit
from fasttrain.sampling.generate import class_labels_of, generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import AdversarialSettings
from fasttrain.system.files import write_atomic
from fasttrain.system.processes import World
from fasttrain.system.talk import quiet
from fasttrain.training.precision import agreement
from fasttrain.training.run.run import Run


def write_audit(run: Run, generator: Any) -> None:
    """Print the audit of trained parameters, and keep it in the run directory."""
    table = audit(generator.model)
    if run.world.is_main and not quiet():
        print(table.table())
    as_json = json.dumps(table.to_dict(), indent=1)
    run.world.on_main(lambda: write_atomic(run.path / "audit.json", as_json))


def describe(
    settings: AdversarialSettings,
    run: Run,
    start: Callable[[], Any],
    discriminator: ProjectedDiscriminator,
) -> None:
    """Write `discriminator.json`: its feature networks, which of them are untrained, and the effect
    of its precision on the logits and image gradients of images at the start."""
    cosines: dict[str, dict[str, float]] = {}
    if discriminator.precision == torch.bfloat16:
        network = start()
        cosines = run.world.on_main(lambda: _agreement(settings, network, discriminator, run.world))
    rows = [
        {
            "name": backbone.name,
            "resolution": backbone.resolution,
            "random": backbone.weights == "random",
            **cosines.get(backbone.name, {}),
        }
        for backbone in settings.discriminator.backbones
    ]
    content = {"precision": str(discriminator.precision).removeprefix("torch."), "backbones": rows}
    as_json = json.dumps(content, indent=1)
    run.world.on_main(lambda: write_atomic(run.path / "discriminator.json", as_json))


def _agreement(
    settings: AdversarialSettings, network: Any, discriminator: ProjectedDiscriminator, world: World
) -> dict[str, dict[str, float]]:
    held = min(settings.discriminator.norm_group, settings.batch // world.size)
    seeds = torch.arange(held, device=world.device)
    images = generate(Sampler.of(settings), network, seeds.tolist(), decoded=False)
    labels = class_labels_of(seeds, settings.network.label_dim)
    with discriminator.alone():
        return agreement(discriminator, images.to(world.device), labels)
