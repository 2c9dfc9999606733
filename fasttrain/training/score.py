"""Score distillation (DMD2, SiD; with a GAN term SiDA): a second diffusion model, the fake-score
network, is trained on what the generator makes, and where it and the teacher disagree, the
generator is corrected (`training/objectives/score_distillation.py`), alone or beside the GAN. Or
(DiffRatio) a classifier of real and generated images with noise takes the place of both
(`training/objectives/class_ratio.py`). `train` is the loop, over the same run, engines and average
as `finetune`.

    score(load_settings("digits-dmd", [], ScoreSettings), start())
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.discriminator.log_ratio import LogRatio
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings import ScoreSettings
from fasttrain.system.processes import World
from fasttrain.training.base_model import frozen_start, trained_start
from fasttrain.training.beside_gan import Student, student_of
from fasttrain.training.engines.make import make_engine
from fasttrain.training.log import report
from fasttrain.training.objectives import class_ratio
from fasttrain.training.objectives import score_distillation as objectives
from fasttrain.training.objectives.diffusion import edm_loss
from fasttrain.training.run.run import Run
from fasttrain_kernels import counter_uniform

__all__ = ["Ratios", "Scores", "score", "train"]

LOWEST, HIGHEST = 0.002, 80.0
"""Ends of EDM's grid, within what the teacher serves."""


def train(settings: ScoreSettings, student: Student, scores: Scores) -> None:
    """The loop: in each iteration a step of the fake-score network, in every `generator_every`-th
    one of the generator before it. Losses are means over samples; every draw is a function of the
    image's index."""
    run, generator = student.run, student.generator
    while not run.ended:
        parts = student.read()
        fakes: list[Tensor] = []

        if run.iterations % settings.generator_every == 0:
            with scores.frozen(), student.judged():
                for part in parts:
                    fake = student.make(part, Stream.GENERATOR)
                    loss = scores.generator_loss(part, fake, run.seed)
                    generator.backward(part.share * student.with_gan(loss, part, fake))
                    if student.reuses:
                        fakes.append(fake.detach())
            run.step(generator, "generator")

        if not fakes:
            with torch.no_grad():
                fakes = [student.make(part, Stream.DISCRIMINATOR) for part in parts]
        for part, fake in zip(parts, fakes, strict=True):
            scores.fake.backward(part.share * scores.fake_loss(part, fake, run.seed))
        run.step(scores.fake, "score")

        student.discriminate(parts, fakes)
        student.advance()


@dataclass(frozen=True)
class Scores:
    """The losses of one micro-batch; each call also logs its loss.

    Attributes:
        teacher: the frozen diffusion model; none where a classifier takes the place of both.
        fake: the engine of that of the generator's images, or of the classifier.
    """

    settings: ScoreSettings
    teacher: Any
    fake: Any

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Context in which the fake-score network collects no gradient."""
        trained = list(self.fake.parameters.values())
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def generator_loss(self, part: Batch, fake: Tensor, seed: int) -> Tensor:
        """Mean over the images, a scalar. fake: generated images [n, C, H, W], differentiable."""
        settings = self.settings
        uniform = counter_uniform(seed, int(Stream.SCORE_LEVEL), part.index, (1,))[:, 0]
        ends = max(LOWEST, self.teacher.sigma_min), min(HIGHEST, self.teacher.sigma_max)
        t = objectives.levels(uniform, *ends)
        x = fake + t * latents(seed, Stream.SCORE_NOISE, part.index, fake.shape[1:])
        with torch.set_grad_enabled(settings.form == "sid"):
            real, own = (network(x, t, part.class_labels) for network in (self.teacher, self.fake))
        if settings.form == "sid":
            losses = objectives.sid(fake, real=real, fake=own, alpha=settings.alpha)
        else:
            losses = objectives.dmd(fake, real=real, fake=own)
        loss = losses.mean()
        report("loss/score", loss, len(part))
        return loss

    def fake_loss(self, part: Batch, fake: Tensor, seed: int) -> Tensor:
        """EDM's loss of the fake-score network on generated images, a scalar."""
        level = latents(seed, Stream.FAKE_LEVEL, part.index, (1, 1, 1))
        noise = latents(seed, Stream.FAKE_NOISE, part.index, fake.shape[1:])
        data = self.settings.network.prediction.sigma_data
        loss = edm_loss(self.fake, fake, level, noise, part.class_labels, sigma_data=data).mean()
        report("loss/denoising", loss, len(part))
        return loss


class Ratios(Scores):
    """The same two losses by a classifier, the engine `fake`, without a teacher."""

    def generator_loss(self, part: Batch, fake: Tensor, seed: int) -> Tensor:
        t = self._levels(Stream.RATIO_LEVEL, part, seed)
        x = fake + t * latents(seed, Stream.SCORE_NOISE, part.index, fake.shape[1:])
        data = self.settings.network.prediction.sigma_data
        logits = self.fake(x, t, part.class_labels)
        pixels = fake[0].numel()
        losses = class_ratio.student_loss(logits, t, sigma_data=data, pixels=pixels)
        loss = losses.mean()
        report("loss/score", loss, len(part))
        return loss

    def fake_loss(self, part: Batch, fake: Tensor, seed: int) -> Tensor:
        """The classifier's loss, a scalar: a real and a generated image at each level."""
        t = self._levels(Stream.FAKE_LEVEL, part, seed)
        shape, labels = fake.shape[1:], part.class_labels
        pairs = ((part.images, Stream.RATIO_NOISE), (fake, Stream.FAKE_NOISE))
        x = torch.cat([i + t * latents(seed, purpose, part.index, shape) for i, purpose in pairs])
        twice = None if labels is None else torch.cat([labels, labels])
        judged = class_ratio.classifier_loss(self.fake(x, torch.cat([t, t]), twice))
        report("loss/classifier", judged.loss, len(part))
        report("ratio/real", judged.real, len(part))
        report("ratio/fake", judged.fake, len(part))
        return judged.loss

    def _levels(self, purpose: Stream, part: Batch, seed: int) -> Tensor:
        low, high = self.fake.module.levels
        t = class_ratio.levels(latents(seed, purpose, part.index, (1, 1, 1)))
        return t.clamp(max(LOWEST, low), min(HIGHEST, high))


def score(settings: ScoreSettings, world: World) -> None:
    """Train the run that the settings name, or resume it.

    Raises UserError for mistakes in data, base model, run directory or settings.
    """
    with student_of(settings, world) as student:
        scores = new_scores(settings, student.run)
        student.resume(score=scores.fake)
        with student.run:
            train(settings, student, scores)


def new_scores(settings: ScoreSettings, run: Run) -> Scores:
    """What corrects the generator, with its network in an engine."""
    # ZeRO 3 lets go of weights after a pass; here each is followed by one of another network.
    stage = min(settings.engine.zero_stage, 2)
    ratio = settings.form == "ratio"
    with run.world.agreed():
        network = trained_start(settings, run)
        if ratio:
            network = LogRatio(network, settings.network.prediction.sigma_data)
        teacher = None if ratio else frozen_start(settings, run)
    fake = make_engine(network, settings.score, settings.engine, run.world, stage=stage)
    return (Ratios if ratio else Scores)(settings, teacher, fake)
