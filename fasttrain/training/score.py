"""Score distillation (DMD2, SiD; with a GAN term SiDA): a second diffusion model, the fake-score
network, is trained on what the generator makes, and where it and the teacher disagree, the
generator is corrected (`training/objectives/score_distillation.py`), alone or beside the GAN.
`train` is the loop, over the same run, engines and average as `finetune`.

    score(load_settings("digits-dmd", [], ScoreSettings), start())
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasttrain.checkpoints import checkpoint
from fasttrain.data import Batch, ImageStream
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.peers import peers_of
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.models.build import new_network
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import ScoreSettings
from fasttrain.system.processes import World
from fasttrain.training.average import Average
from fasttrain.training.base_model import frozen_start, load_base, load_init, trained_start
from fasttrain.training.ema import EMA
from fasttrain.training.engines.engine import Engine
from fasttrain.training.engines.make import make_engine
from fasttrain.training.finetune import build_discriminator, check_weights, discriminator_steps
from fasttrain.training.gan import Gan
from fasttrain.training.latents import decoder_of, open_data
from fasttrain.training.log import report
from fasttrain.training.objectives import score_distillation as objectives
from fasttrain.training.objectives.diffusion import edm_loss
from fasttrain.training.run.run import Run
from fasttrain.training.run.state import Stateful
from fasttrain.training.start_files import describe, write_audit
from fasttrain_kernels import counter_uniform, using

__all__ = ["Scores", "score", "train"]

LOWEST, HIGHEST = 0.002, 80.0
"""Ends of EDM's grid, within what the teacher serves."""


def train(
    settings: ScoreSettings,
    run: Run,
    generator: Engine[Any],
    scores: Scores,
    discriminator: Engine[ProjectedDiscriminator] | None,
    ema: EMA,
    stream: ImageStream,
) -> None:
    """The loop: in each iteration a step of the fake-score network, in every `generator_every`-th
    one of the generator before it. Losses are means over samples; every draw is a function of the
    image's index."""
    sampler, term = Sampler.of(settings), settings.gan
    gan = (
        Gan(term, discriminator.module) if term is not None and discriminator is not None else None
    )

    def make(part: Batch, purpose: Stream) -> Tensor:
        z = latents(run.seed, purpose, part.index, part.images.shape[1:])
        return sampler(generator, z, part.class_labels)

    while not run.ended:
        parts = run.read(stream).to(run.world.device).split(settings.micro_batch)
        fakes: list[Tensor] = []

        if run.iterations % settings.generator_every == 0:
            with scores.frozen(), gan.judge.frozen() if gan is not None else nullcontext():
                for part in parts:
                    fake = make(part, Stream.GENERATOR)
                    loss = scores.generator_loss(part, fake, run.seed)
                    if gan is not None and term is not None:
                        loss = loss + term.weight * gan.generator_loss(part, fake, run.seed)
                        if term.reuse_fakes:
                            fakes.append(fake.detach())
                    generator.backward(part.share * loss)
            run.step(generator, "generator")

        if not fakes:
            with torch.no_grad():
                fakes = [make(part, Stream.DISCRIMINATOR) for part in parts]
        for part, fake in zip(parts, fakes, strict=True):
            scores.fake.backward(part.share * scores.fake_loss(part, fake, run.seed))
        run.step(scores.fake, "score")
        if gan is not None and discriminator is not None:
            discriminator_steps(run, discriminator, gan, parts, make, fakes)

        ema.update(images=settings.batch, seen=run.seen)
        run.advance(settings.batch)


@dataclass(frozen=True)
class Scores:
    """The losses of one micro-batch; each call also logs its loss.

    Attributes:
        teacher: the frozen diffusion model. fake: the engine of that of the generator's images.
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
        loss = edm_loss(self.fake, fake, level, noise, part.class_labels).mean()
        report("loss/denoising", loss, len(part))
        return loss


def score(settings: ScoreSettings, world: World) -> None:
    """Train the run that the settings name, or resume it.

    Raises UserError for mistakes in data, base model, run directory or settings.
    """
    term, peers = settings.gan, None
    if term is not None:
        check_weights(term.discriminator.backbones)
        peers = peers_of(settings.batch, term.discriminator.norm_group, world)
    stream = open_data(settings, world)
    evaluator = Evaluator(settings, world)  # raises if the data set has too few images
    generator = new_network("one_step", settings.network)
    generator.eval()  # no dropout: its draws would depend on the batch and the rank
    origin = None
    if not checkpoint.steps(settings.run / "checkpoints"):  # before anything is written
        origin = load_init(settings, generator, world)
    with using(settings.kernels), closing(stream), closing(Run(settings, world)) as run:
        load_base(settings, run, generator, origin)
        write_audit(run, generator)
        decoder = decoder_of(settings, stream)
        engine = make_engine(generator, settings.generator, settings.engine, world)
        # ZeRO 3 lets go of weights after a pass; here each is followed by one of another network.
        stage = min(settings.engine.zero_stage, 2)
        fake = make_engine(
            trained_start(settings, run), settings.score, settings.engine, world, stage=stage
        )
        scores = Scores(settings, frozen_start(settings, run), fake)
        ema = EMA(engine, half_life=settings.ema.half_life, fraction=settings.ema.fraction)
        average = Average(settings, world, engine, ema, Sampler.of(settings), evaluator, decoder)
        parts: dict[str, Stateful] = {"generator": engine, "ema": ema, "score": fake}
        d_engine = None
        if term is not None:
            d_engine = build_discriminator(settings, term, run, peers, decoder)
            parts |= {"discriminator": d_engine, "projector": d_engine.module.projectors}
        run.resume(stream, average, **parts)
        if run.start is None and d_engine is not None:
            describe(settings, run, average.network, d_engine.module)
        with run:
            train(settings, run, engine, scores, d_engine, ema, stream)
