"""Distillation, the paper's baselines: the student learns to reach in one step what its teacher,
the diffusion model that it begins as, reaches in two (`training/objectives/distillation.py`), alone
or beside the GAN objective. `train` is the loop, over the same run, engines and average as
`finetune`.

    distill(load_settings("digits-cd", [], DistillSettings), start())
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fasttrain.checkpoints import checkpoint
from fasttrain.data import Batch, ImageStream
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.peers import peers_of
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.models.build import new_network
from fasttrain.models.features.network import FeatureNetwork, build_features
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import DistillSettings
from fasttrain.system.processes import World
from fasttrain.training.average import Average
from fasttrain.training.base_model import frozen_start, load_base, load_init
from fasttrain.training.ema import EMA
from fasttrain.training.engines.engine import Engine
from fasttrain.training.engines.make import make_engine
from fasttrain.training.finetune import build_discriminator, check_weights, discriminator_steps
from fasttrain.training.gan import Gan
from fasttrain.training.latents import decoder_of, open_data
from fasttrain.training.log import report
from fasttrain.training.objectives import distillation as objectives
from fasttrain.training.run.run import Run
from fasttrain.training.run.state import Stateful
from fasttrain.training.start_files import describe, write_audit
from fasttrain_kernels import counter_uniform, using

__all__ = ["Distiller", "distill", "train"]

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


def train(
    settings: DistillSettings,
    run: Run,
    student: Engine[Any],
    distiller: Distiller,
    discriminator: Engine[ProjectedDiscriminator] | None,
    ema: EMA,
    stream: ImageStream,
) -> None:
    """The loop. Losses are means over samples; every draw is a function of the image's index."""
    sampler = Sampler.of(settings)
    term = settings.gan

    def make(part: Batch, purpose: Stream) -> Tensor:
        z = latents(run.seed, purpose, part.index, part.images.shape[1:])
        return sampler(student, z, part.class_labels)

    while not run.ended:
        parts = run.read(stream).to(run.world.device).split(settings.micro_batch)
        fakes: list[Tensor] = []

        for part in parts:
            student.backward(part.share * distiller.loss(part, run.seed))
        if term is None or discriminator is None:
            run.step(student, "generator")
        else:
            gan = Gan(term, discriminator.module)
            with gan.judge.frozen():
                for part in parts:
                    fake = make(part, Stream.GENERATOR)
                    loss = term.weight * gan.generator_loss(part, fake, run.seed)
                    student.backward(part.share * loss)
                    if term.reuse_fakes:
                        fakes.append(fake.detach())
            run.step(student, "generator")
            discriminator_steps(run, discriminator, gan, parts, make, fakes)

        ema.update(images=settings.batch, seen=run.seen)
        run.advance(settings.batch)


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
    term, by_features = settings.gan, settings.distance == "features"
    backbones = (settings.features,) if by_features else ()
    check_weights((*backbones, *(term.discriminator.backbones if term is not None else ())))
    alone = "distance: features" if by_features else None
    stream = open_data(settings, world, in_pixels=alone)
    peers = None
    if term is not None:
        peers = peers_of(settings.batch, term.discriminator.norm_group, world)
    evaluator = Evaluator(settings, world)  # raises if the data set has too few images
    student = new_network("one_step", settings.network)
    student.eval()  # no dropout: its draws would depend on the batch and the rank
    origin = None
    if not checkpoint.steps(settings.run / "checkpoints"):  # before anything is written
        origin = load_init(settings, student, world)
    with using(settings.kernels), closing(stream), closing(Run(settings, world)) as run:
        load_base(settings, run, student, origin)
        write_audit(run, student)
        features = None
        if by_features:
            wanted = settings.features
            features = build_features(
                wanted.name, wanted.resolution, weights=wanted.weights, seed=settings.seed
            ).to(world.device)
        decoder = decoder_of(settings, stream)
        engine = make_engine(student, settings.generator, settings.engine, world)
        distiller = Distiller(settings, engine, frozen_start(settings, run), features)
        ema = EMA(engine, half_life=settings.ema.half_life, fraction=settings.ema.fraction)
        average = Average(settings, world, engine, ema, Sampler.of(settings), evaluator, decoder)
        parts: dict[str, Stateful] = {"generator": engine, "ema": ema}
        d_engine = None
        if term is not None:
            d_engine = build_discriminator(settings, term, run, peers, decoder)
            parts |= {"discriminator": d_engine, "projector": d_engine.module.projectors}
        run.resume(stream, average, **parts)
        if run.start is None and d_engine is not None:
            describe(settings, run, average.network, d_engine.module)
        with run:
            train(settings, run, engine, distiller, d_engine, ema, stream)
