"""What trainings of a one-step generator by another objective than the GAN's share: the run, the
generator with its average, and the GAN objective where the settings have it beside their own.

    with student_of(settings, world) as student:
        student.resume()
        with student.run:
            train(settings, student)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fasttrain.data import Batch, ImageStream
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.peers import peers_of
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import BackboneSettings
from fasttrain.settings.tasks import BesideGanSettings
from fasttrain.system.processes import World
from fasttrain.training.average import Average
from fasttrain.training.base_model import load_base
from fasttrain.training.ema import EMA
from fasttrain.training.engines.engine import Engine
from fasttrain.training.engines.make import make_engine
from fasttrain.training.finetune import build_discriminator, discriminator_steps
from fasttrain.training.gan import Gan
from fasttrain.training.latents import decoder_of
from fasttrain.training.prepared import prepare
from fasttrain.training.run.run import Run
from fasttrain.training.run.state import Stateful
from fasttrain.training.start_files import describe, write_audit
from fasttrain_kernels import using

__all__ = ["Student", "student_of"]


@dataclass(frozen=True)
class Student:
    """A one-step generator in training.

    Attributes:
        generator: its engine. ema, average: of what trains; of the whole network.
        discriminator: the engine of the GAN objective beside the training's own; None without one.
    """

    settings: BesideGanSettings
    run: Run
    stream: ImageStream
    generator: Engine[Any]
    ema: EMA
    average: Average
    discriminator: Engine[ProjectedDiscriminator] | None

    @cached_property
    def gan(self) -> Gan | None:
        """The losses of the GAN objective, if there is one."""
        term, discriminator = self.settings.gan, self.discriminator
        return None if term is None or discriminator is None else Gan(term, discriminator.module)

    def resume(self, **parts: Stateful) -> None:
        """Begin, or go on from the newest checkpoint. parts: what else of the training it holds."""
        parts = {"generator": self.generator, "ema": self.ema, **parts}
        if self.discriminator is not None:
            judge = self.discriminator.module
            parts |= {"discriminator": self.discriminator, "projector": judge.projectors}
        self.run.resume(self.stream, self.average, **parts)
        if self.run.start is None and self.discriminator is not None:
            describe(self.settings, self.run, self.average.network, self.discriminator.module)

    def read(self) -> list[Batch]:
        """The next batch, in micro-batches."""
        batch = self.run.read(self.stream).to(self.run.world.device)
        return batch.split(self.settings.micro_batch)

    def make(self, part: Batch, purpose: Stream) -> Tensor:
        """Images [n, C, H, W] of the generator, a draw for each index of a micro-batch."""
        z = latents(self.run.seed, purpose, part.index, part.images.shape[1:])
        return self.average.sampler(self.generator, z, part.class_labels)

    def judged(self) -> AbstractContextManager[object]:
        """Context of the generator's losses: the discriminator collects no gradient there."""
        return nullcontext() if self.gan is None else self.gan.judge.frozen()

    def with_gan(self, loss: Tensor | float, part: Batch, fake: Tensor) -> Any:
        """A loss, and the GAN's of generated images [n, C, H, W] beside it, if there is one."""
        if self.gan is None or self.settings.gan is None:
            return loss
        return loss + self.settings.gan.weight * self.gan.generator_loss(part, fake, self.run.seed)

    @property
    def reuses(self) -> bool:
        """Whether the discriminator judges the images of the generator's step."""
        return self.settings.gan is not None and self.settings.gan.reuse_fakes

    def discriminate(self, parts: Sequence[Batch], fakes: Sequence[Tensor]) -> None:
        """The discriminator's steps, if there is one. fakes: to be judged instead of new ones."""
        if self.gan is not None and self.discriminator is not None:
            discriminator_steps(self.run, self.discriminator, self.gan, parts, self.make, fakes)

    def advance(self) -> None:
        """The end of an iteration."""
        self.ema.update(images=self.settings.batch, seen=self.run.seen)
        self.run.advance(self.settings.batch)


@contextmanager
def student_of(
    settings: BesideGanSettings,
    world: World,
    *,
    networks: Iterable[BackboneSettings] = (),
    before_writing: Callable[[], None] = lambda: None,
) -> Iterator[Student]:
    """The run that the settings name, made or opened; `resume` is what is left to do.

    networks: feature networks of the objective, whose weights have to be there.
    before_writing: what takes long and may raise UserError, too; called once all else has been
    checked.

    Raises UserError for mistakes in data, base model, run directory or settings.
    """
    term, peers = settings.gan, None
    if term is not None:
        peers = peers_of(settings.batch, term.discriminator.norm_group, world)
        networks = (*networks, *term.discriminator.backbones)
    prepared = prepare(settings, world, networks)
    stream, generator = prepared.stream, prepared.generator
    with using(settings.kernels), closing(stream):
        with world.agreed():
            before_writing()
        with closing(Run(settings, world)) as run:
            load_base(settings, run, generator, prepared.origin)
            write_audit(run, generator)
            decoder = decoder_of(settings, stream)
            engine = make_engine(generator, settings.generator, settings.engine, world)
            ema = EMA(engine, half_life=settings.ema.half_life, fraction=settings.ema.fraction)
            sampler = Sampler.of(settings)
            average = Average(settings, world, engine, ema, sampler, prepared.evaluator, decoder)
            judge = None
            if term is not None:
                judge = build_discriminator(settings, term, run, peers, decoder)
            yield Student(settings, run, stream, engine, ema, average, judge)
