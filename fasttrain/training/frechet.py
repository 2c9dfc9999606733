"""Fine-tuning by the Frechet distance of features (FD-loss, arXiv 2604.28190): the generator's
features have to have the mean and the covariance of the real images', in the eyes of several frozen
networks, the judges. No discriminator, and real images only before the loop, unless the GAN
objective stands beside it. `train` is the loop, over the same run, engine and average as
`finetune`.

The distance that is optimised falls for whatever deceives the judges, so it is no evidence: compare
`evaluate.metric`, of a network that is not among them.

    frechet(load_settings("digits-fd-f", [], FrechetSettings), start())
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fasttrain.data import Batch, RealImages
from fasttrain.evaluation.collect import KEPT, collect, parts_of
from fasttrain.evaluation.extractors import Extractor, check_extractor, load_extractor
from fasttrain.evaluation.metrics.statistics import Moments, Statistics
from fasttrain.evaluation.reference import Head, known_statistics
from fasttrain.sampling.draws import Stream
from fasttrain.settings import FrechetSettings, JudgeSettings
from fasttrain.system.processes import World
from fasttrain.training.beside_gan import Student, student_of
from fasttrain.training.log import report
from fasttrain.training.objectives.frechet import (
    Real,
    RunningMoments,
    Slopes,
    beside_classes,
    frechet_slopes,
    linear_part,
)

__all__ = ["Judge", "Judges", "frechet", "train"]


def train(settings: FrechetSettings, student: Student, judges: Judges) -> None:
    """The loop. Of the batches only the classes count, but to a discriminator."""
    run, generator = student.run, student.generator
    while not run.ended:
        parts = student.read()
        fakes: list[Tensor] = []

        whole = len(parts) == 1  # else the moments of all parts come before any gradient
        with torch.set_grad_enabled(whole):
            made = [student.make(part, Stream.GENERATOR) for part in parts]
            seen = [judges.look(fake, part) for part, fake in zip(parts, made, strict=True)]
        slopes = judges.slopes(parts, seen, settings.batch, run.world)
        with student.judged():
            for part, fake, features in zip(parts, made, seen, strict=True):
                if not whole:
                    fake = student.make(part, Stream.GENERATOR)
                    features = judges.look(fake, part)
                loss = student.with_gan(judges.loss(features, slopes), part, fake)
                generator.backward(part.share * loss)
                if student.reuses:
                    fakes.append(fake.detach())
        run.step(generator, "generator")

        student.discriminate(parts, fakes)
        student.advance()


@dataclass(frozen=True)
class Judge:
    """A frozen network, the real images' moments in its features, and the average of the fakes'.

    Attributes:
        class_length: of the one-hot class beside the features; 0: none.
    """

    name: str
    extractor: Extractor
    real: Real
    moments: RunningMoments
    class_length: float = 0.0


@dataclass(frozen=True)
class Judges:
    """All judges of a run; a part of its training state."""

    judges: Sequence[Judge]

    def look(self, images: Tensor, part: Batch) -> list[Tensor]:
        """Features [n, F] of generated images in [-1, 1], not rounded, for each judge."""
        seen = [judge.extractor.features((images.float() + 1) * 127.5) for judge in self.judges]
        lengths = [judge.class_length for judge in self.judges]
        pairs = zip(seen, lengths, strict=True)
        return [beside_classes(features, part.class_labels, length) for features, length in pairs]

    def slopes(
        self, parts: Sequence[Batch], seen: Sequence[Sequence[Tensor]], batch: int, world: World
    ) -> list[Slopes]:
        """Include the batch in the averages, and the slopes of the loss there; logs the distances.
        Every process must call it."""
        found = []
        for k, judge in enumerate(self.judges):
            mean, second = (torch.zeros_like(x) for x in (judge.moments.mean, judge.moments.second))
            for part, features in zip(parts, seen, strict=True):
                x = features[k].detach().double()
                mean += part.share * x.mean(0)
                second += part.share * (x.T @ x / len(x))
            mean, second = (world.sum(x) / world.size for x in (mean, second))
            judge.moments.update(mean, second, batch)
            found.append(frechet_slopes(judge.moments, judge.real))
            report(f"loss/{judge.name}", found[-1].distance, batch)
        return found

    def loss(self, features: Sequence[Tensor], slopes: Sequence[Slopes]) -> Tensor:
        """The part of a micro-batch, a scalar."""
        pairs = zip(features, slopes, strict=True)
        return torch.stack([linear_part(x, slope) for x, slope in pairs]).sum()

    def state_dict(self) -> dict[str, Tensor]:
        states = [j.moments.state_dict(f"{j.name}/") for j in self.judges]
        return {name: tensor for state in states for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for judge in self.judges:
            judge.moments.load_state_dict(state, f"{judge.name}/")


def frechet(settings: FrechetSettings, world: World) -> None:
    """Train the run that the settings name, or resume it.

    Raises UserError for mistakes in data, judges, base model, run directory or settings.
    """
    with world.agreed():
        for wanted in settings.judges:
            check_extractor(wanted.extractor, wanted.weights)
    for wanted in settings.judges:
        if wanted.extractor == settings.evaluate.extractor and world.is_main:
            warnings.warn(
                f"{wanted.extractor} is a judge and evaluates the run, too: what it measures is "
                f"what was optimised; set another evaluate.extractor",
                stacklevel=2,
            )
    judges: list[Judge] = []

    def look_at_data() -> None:
        judges.extend(new_judge(settings, wanted, world) for wanted in settings.judges)

    with student_of(settings, world, before_writing=look_at_data) as student:
        all_judges = Judges(judges)
        student.resume(judges=all_judges)
        with student.run:
            train(settings, student, all_judges)


def new_judge(settings: FrechetSettings, wanted: JudgeSettings, world: World) -> Judge:
    """The judge with the statistics in its file, else those of the run's own data: at most 50,000
    images, which every process reads."""
    extractor = load_extractor(wanted.extractor, wanted.resolution, wanted.weights)
    extractor.to(world.device)
    width, length = extractor.width, 0.0
    if wanted.statistics is not None:
        statistics = known_statistics(wanted.statistics, extractor).statistics
    elif settings.class_length:
        statistics, length = _of_classes(settings, extractor, world)
        width += settings.network.label_dim
    else:
        statistics = _of_data(settings, extractor, world)
    moments = RunningMoments(width, settings.half_life, world.device)
    real = Real.of(*(x.to(world.device) for x in (statistics.mu, statistics.sigma)))
    return Judge(wanted.name, extractor, real, moments, length)


def _of_data(settings: FrechetSettings, extractor: Extractor, world: World) -> Statistics:
    images = RealImages.of_run(settings)
    head, alone = Head(images, min(images.index.images, KEPT)), World(0, 1, world.device)
    batches = head.batches(parts_of(head.count, settings.evaluate.batch, alone))
    collected = collect(batches, extractor, count=head.count, keep=0, world=alone)
    assert collected.statistics is not None
    return collected.statistics


def _of_classes(
    settings: FrechetSettings, extractor: Extractor, world: World
) -> tuple[Statistics, float]:
    """Statistics of the features beside the classes, and the length of a class."""
    images, alone = RealImages.of_run(settings), World(0, 1, world.device)
    moments = Moments(extractor.width + settings.network.label_dim, world.device)
    for part in parts_of(min(images.index.images, KEPT), settings.evaluate.batch, alone):
        batch = images.take(len(part)).to(world.device)
        moments.update(beside_classes(extractor(batch.images), batch.class_labels, 1.0))
    known = moments.statistics(alone)
    own = slice(0, extractor.width)
    length = settings.class_length * known.sigma[own, own].trace().clamp(min=0).sqrt().item()
    scale = torch.ones_like(known.mu)
    scale[extractor.width :] = length
    return Statistics(known.mu * scale, scale[:, None] * known.sigma * scale), length
