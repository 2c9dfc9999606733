"""D2O and D2O-F: GAN fine-tuning turns a diffusion model into a one-step generator
(Zheng and Yang, "Revisiting Diffusion Models: From Generative Pre-training to One-Step
Generation", ICML 2025).

The generator is the diffusion U-Net evaluated once, x = G(sigma z, sigma) at sigma = 80, or twice
when there is a `sigma_mid`. With most of its convolutions frozen (D2O-F) it is trained against a
projected discriminator with the non-saturating loss, lazy R1 and an average of its trained
parameters. `train` is the algorithm.

    finetune(load_settings("digits-d2o-f", [], FinetuneSettings), start())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from fasttrain.data import Batch, ImageStream
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.build import new_discriminator
from fasttrain.discriminator.own import OWN
from fasttrain.discriminator.peers import Peers, peers_of
from fasttrain.models.latents import Decoder
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import AdversarialSettings, FinetuneSettings
from fasttrain.settings.gan import GanSettings
from fasttrain.system.processes import World
from fasttrain.training.average import Average
from fasttrain.training.base_model import frozen_start, load_base, trained_start
from fasttrain.training.ema import EMA
from fasttrain.training.engines.engine import Engine
from fasttrain.training.engines.make import make_engine
from fasttrain.training.gan import Gan
from fasttrain.training.graphs import capture, check_graphs
from fasttrain.training.latents import decoder_of
from fasttrain.training.log import report
from fasttrain.training.objectives.reward import Reward, new_reward
from fasttrain.training.prepared import prepare
from fasttrain.training.run.precision import in_precision
from fasttrain.training.run.run import Run
from fasttrain.training.start_files import describe, write_audit
from fasttrain_kernels import using

__all__ = ["finetune", "train"]


def train(
    settings: FinetuneSettings,
    run: Run,
    generator: Engine[Any],
    discriminator: Engine[ProjectedDiscriminator],
    ema: EMA,
    stream: ImageStream,
    reward: Reward | None = None,
) -> None:
    """The algorithm. Losses are means over samples; every draw is a function of the image's index,
    so the world size and the micro-batch change nothing."""
    sampler, judge = Sampler.of(settings), discriminator.module
    gan = Gan(settings, judge)

    def make(part: Batch, purpose: Stream) -> Tensor:
        z = latents(run.seed, purpose, part.index, part.images.shape[1:])
        return sampler(generator, z, part.class_labels)

    while not run.ended:
        parts = run.read(stream).to(run.world.device).split(settings.micro_batch)
        fakes: list[Tensor] = []

        with judge.frozen():  # its parameters collect no gradient here
            for part in parts:
                fake = make(part, Stream.GENERATOR)
                loss = gan.generator_loss(part, fake, run.seed)
                if reward is not None and settings.reward is not None:
                    own = -reward(fake, part.class_labels).mean()
                    report("loss/reward", own, len(part))
                    loss = loss + settings.reward.weight * own
                generator.backward(part.share * loss)
                if settings.reuse_fakes:
                    fakes.append(fake.detach())
        run.step(generator, "generator")

        discriminator_steps(run, discriminator, gan, parts, make, fakes)

        ema.update(images=settings.batch, seen=run.seen)
        run.advance(settings.batch)


def discriminator_steps(
    run: Run,
    discriminator: Engine[ProjectedDiscriminator],
    gan: Gan,
    parts: Sequence[Batch],
    make: Callable[[Batch, Stream], Tensor],
    fakes: Sequence[Tensor],
) -> None:
    """The discriminator's step, and where they are due the exact penalties', a step of their own.

    make: generates images of a micro-batch; fakes: those of the generator's step to be judged
    instead, if any.
    """
    judge = discriminator.module
    for k, part in enumerate(parts):
        with torch.no_grad():
            fake = fakes[k] if fakes else make(part, Stream.DISCRIMINATOR)
        loss = gan.discriminator_loss(part, fake, run.seed, run.seen)
        discriminator.backward(part.share * loss)
    if run.step(discriminator, "discriminator"):
        judge.iterate_spectral_norm()

    if run.every(gan.settings.lazy_interval):
        for part in parts:
            penalty = gan.lazy_penalty(part, lambda p: make(p, Stream.R2), run.seed, run.seen)
            discriminator.backward(part.share * penalty)
        if run.step(discriminator, "r1"):
            judge.iterate_spectral_norm()


def finetune(settings: FinetuneSettings, world: World) -> None:
    """Train the run that the settings name, or resume it.

    Raises UserError for mistakes in data, base model, run directory or settings.
    """
    peers = peers_of(settings.batch, settings.discriminator.norm_group, world)
    if settings.graphs:
        check_graphs(world.device, peers is not None)
    seen = [] if settings.reward is None else [settings.reward.features]
    prepared = prepare(settings, world, [*settings.discriminator.backbones, *seen])
    stream, generator = prepared.stream, prepared.generator
    with world.agreed(), using(settings.kernels):
        reward = new_reward(settings, world.device)
    with using(settings.kernels), closing(stream), closing(Run(settings, world)) as run:
        settings = in_precision(settings, run)
        load_base(settings, run, generator, prepared.origin)
        write_audit(run, generator)
        decoder = decoder_of(settings, stream)
        d_engine = build_discriminator(settings, settings, run, peers, decoder)
        g_engine = make_engine(generator, settings.generator, settings.engine, world)
        ema = EMA(g_engine, half_life=settings.ema.half_life, fraction=settings.ema.fraction)
        sampler = Sampler.of(settings)
        average = Average(settings, world, g_engine, ema, sampler, prepared.evaluator, decoder)
        run.resume(
            stream,
            average,
            generator=g_engine,
            discriminator=d_engine,
            ema=ema,
            projector=d_engine.module.projectors,
        )
        if run.start is None:
            describe(settings, run, average.network, d_engine.module)
        if settings.graphs:
            judge = d_engine.module
            capture(g_engine.module)
            capture(judge, judge.heads, twice=True, state=lambda: judge.precision)
        with run:
            train(settings, run, g_engine, d_engine, ema, stream, reward)


def build_discriminator(
    settings: AdversarialSettings,
    gan: GanSettings,
    run: Run,
    peers: Peers | None,
    decoder: Decoder | None = None,
) -> Engine[ProjectedDiscriminator]:
    """The discriminator in its engine. decoder: of a run on latents."""
    world, engine = run.world, settings.engine
    torch.manual_seed(settings.seed)
    own = next((b for b in settings.discriminator.backbones if b.name == OWN), None)
    with world.agreed():
        begun = None
        if own is not None:
            begun = trained_start(settings, run) if own.train else frozen_start(settings, run)
        discriminator = new_discriminator(
            settings,
            world.device,
            fresh=run.start is None,
            peers=peers,
            own=begun,
            decode=decoder,
        )
    return make_engine(
        discriminator,
        gan.discriminator.optimizer,
        engine,
        world,
        # ZeRO 3 lets go of weights after a backward pass: exact R1 needs them in a second one, and
        # in the generator's step the heads' weights have no gradient for it to shard.
        stage=min(engine.zero_stage, 2),
        trained=discriminator.heads,
        lazy_interval=gan.lazy_interval,
    )
