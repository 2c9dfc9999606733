"""What the trainings of a generator read and check before the run directory is touched: every
process for itself, and all of them refuse what one of them cannot use.

    prepared = prepare(settings, world, settings.discriminator.backbones)
    prepared.stream, prepared.evaluator, prepared.generator
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.data import ImageStream
from fasttrain.discriminator.own import OWN
from fasttrain.discriminator.peers import check_processes
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.models.build import new_network
from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.weights import find_weights
from fasttrain.settings import BackboneSettings
from fasttrain.settings.generator import GeneratorSettings
from fasttrain.system.processes import World
from fasttrain.training.base_model import load_init
from fasttrain.training.latents import open_data

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """Data, evaluations, and the generator with the weights of `init`.

    Attributes:
        origin: of the model that `init` names; None where the run goes on from a checkpoint.
    """

    stream: ImageStream
    evaluator: Evaluator | None
    generator: Any
    origin: dict[str, str] | None


def prepare(
    settings: GeneratorSettings, world: World, networks: Iterable[BackboneSettings]
) -> Prepared:
    """Open and check it; every process must call it.

    networks: feature networks whose weights have to be there.

    Raises UserError, on every process, for mistakes in data, weights, base model or settings.
    """
    folder = settings.run / "checkpoints"
    begins = settings.from_ is None and not world.on_main(lambda: checkpoint.steps(folder))
    with world.agreed():
        for wanted in networks:
            if wanted.weights != "random" and wanted.name != OWN:
                find_weights(backbone(wanted.name).published, wanted.weights)
        check_processes(settings, world)
        stream = open_data(settings, world)
        # Raises if the data set has too few images.
        evaluator = Evaluator(settings, world) if settings.evaluate.every is not None else None
        generator = new_network("one_step", settings.network)
        generator.eval()  # no dropout: its draws would depend on the batch and the rank
        origin = load_init(settings, generator, world) if begins else None
    return Prepared(stream, evaluator, generator, origin)
