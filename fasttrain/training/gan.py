"""Losses of one micro-batch for each step of the GAN: tensors in, a scalar loss out. No engine, no
rank: every draw is a function of the seed and the image's index.

    gan = Gan(settings, discriminator)
    generator.backward(part.share * gan.generator_loss(part, fake, seed))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.augment import augment
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings import FinetuneSettings
from fasttrain.training.log import report
from fasttrain.training.objectives import gan as objectives

__all__ = ["Gan"]

FINE_ENOUGH = 0.05
"""Least standard deviation of noise that bfloat16 resolves (images are in [-1, 1])."""


@dataclass(frozen=True)
class Gan:
    """The losses of the generator's and the discriminator's steps; each call also logs its loss.

    part: a micro-batch; fake: its generated images [n, C, H, W]; seed: of this run's draws.
    """

    settings: FinetuneSettings
    judge: ProjectedDiscriminator

    def generator_loss(self, part: Batch, fake: Tensor, seed: int) -> Tensor:
        seen = self._seen(fake, part, seed, Stream.AUGMENT_GENERATOR)
        logits = self.judge(seen, part.class_labels)

        def real() -> list[Tensor]:
            with torch.no_grad():
                images = self._seen(part.images, part, seed, Stream.AUGMENT_GENERATOR)
                return self.judge(images, part.class_labels)

        loss = objectives.generator_loss(logits, self.settings.loss, real)
        report("loss/generator", loss, len(part))
        return loss

    def discriminator_loss(self, part: Batch, fake: Tensor, seed: int) -> Tensor:
        """Includes the approximated R1 if the settings choose it. One pass for all images, unless
        the penalty's noise is too small for bfloat16: then the penalty runs in a separate float32
        pass."""
        r1, labels = self.settings.r1, part.class_labels
        real = self._seen(part.images, part, seed, Stream.AUGMENT_REAL)
        batches = [real, self._seen(fake, part, seed, Stream.AUGMENT_FAKE)]
        penalized = r1.kind == "approximated" and r1.weight > 0
        apart = penalized and self.judge.precision == torch.bfloat16 and r1.sigma < FINE_ENOUGH
        if penalized:
            noisy = real + r1.sigma * latents(seed, Stream.R1_NOISE, part.index, real.shape[1:])
            batches += [] if apart else [noisy]
        logits = self.judge.together(batches, labels)
        judged = objectives.discriminator_loss(
            real=logits[0], fake=logits[1], kind=self.settings.loss
        )
        report("loss/discriminator", judged.loss, len(part))
        report("logits/real", judged.real, len(part))
        report("logits/fake", judged.fake, len(part))
        if not penalized:
            return judged.loss
        if apart:
            with self.judge.in_precision(torch.float32):
                logits = self.judge.together([real, noisy], labels)
        penalty = objectives.approximated_r1(clean=logits[0], noisy=logits[-1])
        report("loss/r1", penalty, len(part))
        return judged.loss + r1.weight * penalty

    def lazy_r1(self, part: Batch, seed: int) -> Tensor:
        """Exact R1, scaled for one step in `interval` iterations."""
        r1 = self.settings.r1

        def judge(images: Tensor, labels: Tensor | None) -> list[Tensor]:
            return self.judge(self._seen(images, part, seed, Stream.AUGMENT_R1), labels)

        with self.judge.in_precision(torch.float32):
            penalty = objectives.r1_penalty(judge, part.images, part.class_labels)
        report("loss/r1", penalty, len(part))
        return (r1.interval * r1.gamma / 2) * penalty

    def _seen(self, images: Tensor, part: Batch, seed: int, purpose: Stream) -> Tensor:
        return augment(images, self.settings.discriminator.augment, seed, purpose, part.index)
