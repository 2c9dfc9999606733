"""Distillation, the paper's baselines: the student learns to reach in one step what its teacher,
the diffusion model that it begins as, reaches in two (`training/objectives/distillation.py`), alone
or beside the GAN objective. `train` is the loop, over the same run, engines and average as
`finetune`.

    distill(load_settings("digits-cd", [], DistillSettings), start())
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.models.features.network import FeatureNetwork, build_features
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings import DistillSettings
from fasttrain.system.processes import World
from fasttrain.training.base_model import frozen_start
from fasttrain.training.beside_gan import Student, student_of
from fasttrain.training.log import report
from fasttrain.training.objectives import distillation as objectives
from fasttrain_kernels import counter_uniform

__all__ = ["Distiller", "OwnLoss", "distill", "train"]

LOWEST = 0.002
"""The lowest noise level above 0, where a one-step generator is the identity."""

Hop = Literal["teacher", "student", "either", "trajectory"]
HOPS: dict[str, tuple[Hop, Hop]] = {
    "pd": ("either", "either"),
    "cd": ("teacher", "student"),
    "ctm": ("trajectory", "either"),
    "rcd": ("student", "teacher"),
}
"""Who goes from t to u, and from u to s; either: the teacher where the levels are neighbours, else
the student; trajectory: the teacher over all levels in between."""


class OwnLoss(Protocol):
    """A loss of the generator that no discriminator takes part in."""

    def loss(self, part: Batch, seed: int) -> Tensor:
        """Mean over the images of a micro-batch, a scalar. seed: of this run's draws."""


def train(student: Student, own: OwnLoss) -> None:
    """The loop. Losses are means over samples; every draw is a function of the image's index."""
    run, generator = student.run, student.generator
    while not run.ended:
        parts = student.read()
        fakes: list[Tensor] = []

        for part in parts:
            generator.backward(part.share * own.loss(part, run.seed))
        if student.gan is not None:
            with student.judged():
                for part in parts:
                    fake = student.make(part, Stream.GENERATOR)
                    generator.backward(part.share * student.with_gan(0.0, part, fake))
                    if student.reuses:
                        fakes.append(fake.detach())
        run.step(generator, "generator")

        student.discriminate(parts, fakes)
        student.advance()


@dataclass(frozen=True)
class Distiller:
    """The loss of one micro-batch.

    Attributes:
        student: the generator's engine. teacher: the frozen diffusion model.
        features: the network of the distance; None for squared error.
    """

    settings: DistillSettings
    student: Any
    teacher: Any
    features: FeatureNetwork | None = None

    def loss(self, part: Batch, seed: int) -> Tensor:
        """Mean over the images, a scalar; also logs it."""
        settings, labels = self.settings, part.class_labels
        grid = objectives.grid(settings.levels, LOWEST, settings.sigma).to(part.images.device)
        draws = (objectives.DRAWS,)
        uniform = counter_uniform(seed, int(Stream.DISTILLATION_LEVEL), part.index, draws)
        places = objectives.triple(settings.method, uniform, settings.levels)
        t, s = (grid[place].view(-1, 1, 1, 1) for place in (places.t, places.s))
        noise = latents(seed, Stream.DISTILLATION_NOISE, part.index, part.images.shape[1:])
        x = part.images + t * noise

        def student(x: Tensor, level: Tensor) -> Tensor:
            images: Tensor = self.student(x, level, labels)
            return images

        estimate = student(x, t)
        with torch.no_grad():
            first, second = HOPS[settings.method]
            middle = self._go(first, student, x, grid, places.t, places.u, labels)
            end = self._go(second, student, middle, grid, places.u, places.s, labels)
        if settings.method == "ctm":
            ours = s / t * x + (1 - s / t) * estimate
            loss = self._at_the_lowest(student, ours, end, s, grid[1].expand_as(s))
        else:
            loss = self._distance(estimate, objectives.implied(x, end, t, s)).mean()
        report("loss/distillation", loss, len(part))
        return loss

    def _go(
        self,
        hop: Hop,
        student: objectives.Denoise,
        x: Tensor,
        grid: Tensor,
        start: Tensor,
        end: Tensor,
        labels: Tensor | None,
    ) -> Tensor:
        """From the places `start` to `end` in the grid, int64 [N]."""

        def teacher(x: Tensor, level: Tensor) -> Tensor:
            images: Tensor = self.teacher(x, level, labels)
            return images

        if hop == "trajectory":
            return self._along(x, grid, start, end, labels)
        t, s = (grid[place].view(-1, 1, 1, 1) for place in (start, end))
        if hop == "teacher":
            return objectives.heun_step(teacher, x, t, s)
        jumped = objectives.jump(student, x, t, s)
        if hop == "student":
            return jumped
        stepped = objectives.heun_step(teacher, x, t, s)
        return torch.where((start - end == 1).view(-1, 1, 1, 1), stepped, jumped)

    def _along(
        self, x: Tensor, grid: Tensor, start: Tensor, end: Tensor, labels: Tensor | None
    ) -> Tensor:
        """The teacher's steps over every level; images that have arrived take no more of them."""
        x, at = x.clone(), start.clone()
        while len(left := (at > end).nonzero()[:, 0]):
            some = None if labels is None else labels[left]
            t, s = (grid[at[left] - back].view(-1, 1, 1, 1) for back in (0, 1))

            def teacher(x: Tensor, level: Tensor, some: Tensor | None = some) -> Tensor:
                images: Tensor = self.teacher(x, level, some)
                return images

            x[left] = objectives.heun_step(teacher, x[left], t, s)
            at[left] -= 1
        return x

    def _at_the_lowest(
        self, student: objectives.Denoise, ours: Tensor, end: Tensor, s: Tensor, lowest: Tensor
    ) -> Tensor:
        """The distance of both ends after the student's jump to the lowest level. Its gradient
        reaches the student through `ours` alone: the weights of the second jump are constants, so
        the jump's derivative is taken here, and what is returned is linear in `ours`."""
        with torch.no_grad():
            target = objectives.jump(student, end, s, lowest)
        leaf = ours.detach().requires_grad_()
        distance = self._distance(objectives.jump(student, leaf, s, lowest), target).mean()
        (slope,) = torch.autograd.grad(distance, leaf)
        linear = (ours * slope).sum()
        return linear + (distance - linear).detach()

    def _distance(self, ours: Tensor, target: Tensor) -> Tensor:
        if self.features is None:
            return objectives.squared_error(ours, target)
        with torch.no_grad():
            maps = self.features(target)
        return objectives.feature_distance(self.features(ours), maps)


def distill(settings: DistillSettings, world: World) -> None:
    """Train the run that the settings name, or resume it.

    Raises UserError for mistakes in data, base model, run directory or settings.
    """
    by_features, wanted = settings.distance == "features", settings.features
    with student_of(settings, world, networks=(wanted,) if by_features else ()) as student:
        with world.agreed():
            features = None
            if by_features:
                features = build_features(
                    wanted.name, wanted.resolution, weights=wanted.weights, seed=settings.seed
                ).to(world.device)
            teacher = frozen_start(settings, student.run)
        student.resume()
        with student.run:
            train(student, Distiller(settings, student.generator, teacher, features))
