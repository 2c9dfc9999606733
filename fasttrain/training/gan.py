"""Losses of one micro-batch for each step of the GAN: tensors in, a scalar loss out. No engine, no
rank: every draw is a function of the seed and the image's index.

    gan = Gan(settings, discriminator)
    generator.backward(part.share * gan.generator_loss(part, fake, seed))
    discriminator.backward(part.share * gan.discriminator_loss(part, fake, seed, images_seen))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fasttrain.data import Batch
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.augment import augment
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings import PenaltySettings
from fasttrain.settings.gan import GanSettings
from fasttrain.system.switches import tf32
from fasttrain.training.log import report
from fasttrain.training.objectives import gan as objectives
from fasttrain.training.objectives.pulled import pulled_r1

__all__ = ["Gan"]

FINE_ENOUGH = 0.05
"""Least standard deviation of noise that bfloat16 resolves (images are in [-1, 1])."""


@dataclass(frozen=True)
class Gan:
    """The losses of the generator's and the discriminator's steps; each call also logs its loss.

    part: a micro-batch; fake: its generated images [n, C, H, W]; seed: of this run's draws; seen:
    images seen, for the schedules of the penalties' strengths.
    """

    settings: GanSettings
    judge: ProjectedDiscriminator

    def generator_loss(self, part: Batch, fake: Tensor, seed: int) -> Tensor:
        seen = self._seen(fake, part, seed, Stream.AUGMENT_GENERATOR)
        logits = self.judge(seen, part.class_labels, part.index)

        def real() -> list[Tensor]:
            with torch.no_grad():
                images = self._seen(part.images, part, seed, Stream.AUGMENT_GENERATOR)
                return self.judge(images, part.class_labels, part.index)

        loss = objectives.generator_loss(logits, self.settings.loss, real)
        report("loss/generator", loss, len(part))
        return loss

    def discriminator_loss(self, part: Batch, fake: Tensor, seed: int, seen: int = 0) -> Tensor:
        """Includes the approximated penalties and the centring that the settings choose. One pass
        for all images, unless a penalty has a pass of its own (`_Difference.apart`)."""
        settings, labels = self.settings, part.class_labels
        real = self._seen(part.images, part, seed, Stream.AUGMENT_REAL)
        fake = self._seen(fake, part, seed, Stream.AUGMENT_FAKE)
        differences = [
            _Difference(self, name, penalty, k, replace(part, images=images), seed, purpose)
            for k, (name, penalty, images, purpose) in enumerate(
                (
                    ("r1", settings.r1, real, Stream.R1_NOISE),
                    ("r2", settings.r2, fake, Stream.R2_NOISE),
                )
            )
            if penalty.approximates
        ]
        joint = [difference for difference in differences if not difference.apart]
        logits = self.judge.together([real, fake, *(d.noisy() for d in joint)], labels, part.index)
        judged = objectives.discriminator_loss(real=logits[0], fake=logits[1], kind=settings.loss)
        report("loss/discriminator", judged.loss, len(part))
        report("logits/real", judged.real, len(part))
        report("logits/fake", judged.fake, len(part))
        loss, noisy = judged.loss, iter(logits[2:])
        for difference in differences:
            clean = logits[difference.at]
            penalty = difference.penalty(clean, None if difference.apart else next(noisy))
            report(f"loss/{difference.name}", penalty, len(part))
            strength = difference.settings.weight * difference.settings.decay.factor(seen)
            loss = loss + strength * penalty
        if settings.centring:
            centring = objectives.centring(real=logits[0], fake=logits[1])
            report("loss/centring", centring, len(part))
            loss = loss + settings.centring * centring
        return loss

    def lazy_penalty(
        self, part: Batch, make: Callable[[Batch], Tensor], seed: int, seen: int = 0
    ) -> Tensor:
        """Exact R1 and R2, scaled for one step in `interval` iterations. make: generates the images
        of a batch, for R2."""
        total = None
        for name, penalty, purpose in (
            ("r1", self.settings.r1, Stream.AUGMENT_R1),
            ("r2", self.settings.r2, Stream.AUGMENT_R2),
        ):
            if not penalty.lazy_interval:
                continue
            some = part
            if penalty.one_in > 1:
                some = _some_of(part, self.penalised(part, penalty))
            if name == "r2":
                with torch.no_grad():
                    some = replace(some, images=make(some))
            exact = self._of_features if penalty.inputs == "features" else self._exact
            value = exact(some, seed, purpose, penalty.features)
            report(f"loss/{name}", value, len(part))
            gamma = penalty.gamma * penalty.decay.factor(seen)
            scaled = (penalty.interval * gamma / 2) * value
            total = scaled if total is None else total + scaled
        assert total is not None, "no exact penalty is set"
        return total

    def _exact(self, part: Batch, seed: int, purpose: Stream, features: str) -> Tensor:
        judge, labels = self.judge, part.class_labels

        def whole(images: Tensor, labels: Tensor | None) -> list[Tensor]:
            return judge(self._seen(images, part, seed, purpose), labels, part.index)

        # torch's fused attention has no second derivative; the networks' own attention may call it.
        with judge.in_precision(torch.float32), sdpa_kernel(SDPBackend.MATH):
            if features == "float32":
                return objectives.r1_penalty(whole, part.images, labels)
            return pulled_r1(
                lambda images: judge.look(
                    self._seen(images, part, seed, purpose), labels, part.index
                ),
                lambda maps: (judge.judge(maps, labels), judge.judged(maps)),
                part.images,
                lambda: self._looking(features),
            )

    @contextmanager
    def _looking(self, features: str) -> Iterator[None]:
        """Context of the exact penalties' feature networks."""
        dtype = torch.bfloat16 if features == "bfloat16" else torch.float32
        with self.judge.in_precision(dtype), tf32(features == "tf32"):
            yield

    def _of_features(self, part: Batch, seed: int, purpose: Stream, features: str) -> Tensor:
        """The exact penalty on what the heads see (Sauer et al., "Adversarial Diffusion
        Distillation", arXiv 2311.17042)."""
        judge, labels = self.judge, part.class_labels
        images = self._seen(part.images.detach(), part, seed, purpose)
        with self._looking(features):
            looked = judge.look(images, labels, part.index)
        with judge.in_precision(torch.float32):
            maps = [[m.detach().float().requires_grad_() for m in backbone] for backbone in looked]
            return objectives.squared_gradient(judge.judge(maps, labels), judge.judged(maps))

    def penalised(self, part: Batch, penalty: PenaltySettings) -> Tensor:
        """Which images of a part are penalised, bool [n]: every k-th group. A part begins at a
        multiple of k groups, so they are the same for any micro-batch and world size."""
        places = torch.arange(len(part), device=part.index.device)
        return places // self.settings.discriminator.norm_group % penalty.one_in == 0

    def _seen(self, images: Tensor, part: Batch, seed: int, purpose: Stream) -> Tensor:
        return augment(images, self.settings.discriminator.augment, seed, purpose, part.index)


@dataclass(frozen=True)
class _Difference:
    """An approximated penalty of one step. part: with the images as the discriminator sees them;
    at: place of their logits in the step's pass."""

    gan: Gan
    name: str
    settings: PenaltySettings
    at: int
    part: Batch
    seed: int
    purpose: Stream

    @property
    def in_float32(self) -> bool:
        """Whether the noise is too small for bfloat16."""
        return self.gan.judge.precision == torch.bfloat16 and self.settings.sigma < FINE_ENOUGH

    @property
    def apart(self) -> bool:
        """Whether its images have a pass of their own: in float32, or because they are fewer."""
        return self.in_float32 or self.settings.one_in > 1

    def noisy(self, part: Batch | None = None) -> Tensor:
        """The images with noise of all, or of a part of them."""
        part = part or self.part
        noise = latents(self.seed, self.purpose, part.index, part.images.shape[1:])
        return part.images + self.settings.sigma * noise

    def penalty(self, clean: list[Tensor], noisy: list[Tensor] | None) -> Tensor:
        """From the logits of all images, and those with noise unless these are still to come."""
        if noisy is None:
            judge, chosen = self.gan.judge, self.gan.penalised(self.part, self.settings)
            some = _some_of(self.part, chosen)
            if self.in_float32:
                with judge.in_precision(torch.float32):
                    pair = [some.images, self.noisy(some)]
                    clean, noisy = judge.together(pair, some.class_labels, some.index)
            else:
                clean = [logits[chosen] for logits in clean]
                noisy = judge(self.noisy(some), some.class_labels, some.index)
        return objectives.approximated_r1(clean=clean, noisy=noisy)


def _some_of(part: Batch, chosen: Tensor) -> Batch:
    labels = None if part.class_labels is None else part.class_labels[chosen]
    return Batch(part.images[chosen], labels, part.index[chosen], part.share)
