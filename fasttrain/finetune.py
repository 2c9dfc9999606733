"""D2O and D2O-F: a diffusion model becomes a one-step generator by GAN fine-tuning alone
(Zheng and Yang, "Revisiting Diffusion Models: From Generative Pre-training to One-Step
Generation", ICML 2025).

The generator is the diffusion U-Net evaluated once, x = G(sigma z, sigma) at sigma = 80. With most
of its convolutions frozen (D2O-F) it is trained against a projected discriminator with the
non-saturating loss, lazy R1 and an average of what trains. `train` is the algorithm.

    finetune(load_settings("digits-d2o-f", [], FinetuneSettings), start())
"""

from __future__ import annotations

import json
from typing import Any

import torch

from fasttrain import checkpoint, objectives
from fasttrain.checkpoint import write_atomic
from fasttrain.data import ImageStream
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.distributed import World
from fasttrain.draws import Stream, latents
from fasttrain.ema import EMA
from fasttrain.engines import Engine, make_engine
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.freezing import apply_freezing, audit
from fasttrain.generation import generate
from fasttrain.metrics import report
from fasttrain.models import (
    full_precision,
    load_weights,
    new_discriminator,
    new_network,
    prepare_network,
)
from fasttrain.pretrain import open_stream
from fasttrain.run import Run
from fasttrain.sampling import one_step
from fasttrain.settings import FinetuneSettings

__all__ = ["finetune", "train"]


def finetune(settings: FinetuneSettings, world: World) -> None:
    """Train, or go on training, the run that the settings name.

    Raises UserError for what the user can mend: data, base model, run directory, settings.
    """
    stream = open_stream(settings, world)
    generator = new_network("one_step", settings.network, settings.kernels)
    generator.eval()  # no dropout: its draws would depend on the batch and the rank
    resuming = bool(checkpoint.steps(settings.run / "checkpoints"))
    if not resuming:  # before anything is written
        load_weights(generator, settings.init)
    run = Run(settings, world)
    if resuming and run.start is None:  # every checkpoint is damaged
        load_weights(generator, settings.init)
    apply_freezing(generator.model, settings.freeze)
    prepare_network(generator, settings, world.device)
    torch.manual_seed(settings.seed)
    discriminator = new_discriminator(settings, world.device, fresh=run.start is None)
    g_engine = make_engine(generator, settings.generator, settings.engine, world)
    d_engine = make_engine(
        discriminator,
        settings.discriminator.optimizer,
        settings.engine,
        world,
        trained=discriminator.heads,
        lazy_interval=settings.r1.interval if settings.r1.gamma else None,
    )
    ema = EMA(generator, half_life=settings.ema.half_life, fraction=settings.ema.fraction)
    run.resume(
        stream,
        generator=g_engine,
        discriminator=d_engine,
        ema=ema,
        projector=discriminator.projectors,
    )
    table = audit(generator.model)
    if world.is_main:
        print(table.table())
    as_json = json.dumps(table.to_dict(), indent=1)
    world.on_main(lambda: write_atomic(run.path / "audit.json", as_json))
    evaluator = Evaluator(settings, world.device)
    seeds, sigma = range(settings.sample.count), settings.sigma

    def average() -> Any:
        return full_precision(ema.network())

    run.draw = lambda: generate(one_step, average(), seeds, sigma=sigma)
    run.evaluate = lambda: evaluator(one_step, average(), sigma=sigma)
    with run:
        train(settings, run, g_engine, d_engine, ema, stream)


def train(
    settings: FinetuneSettings,
    run: Run,
    generator: Engine[Any],
    discriminator: Engine[ProjectedDiscriminator],
    ema: EMA,
    stream: ImageStream,
) -> None:
    """The algorithm. Losses are means over samples; every draw is a function of the image's index,
    so the world size and the micro-batch change nothing."""
    seed, sigma, r1, batch_size = settings.seed, settings.sigma, settings.r1, settings.batch
    while run.images < settings.images:
        batch = next(stream).to(run.world.device)
        parts = batch.split(settings.micro_batch)

        with discriminator.module.frozen():  # its parameters collect no gradient here
            for part in parts:
                z = latents(seed, Stream.GENERATOR, part.index, part.images.shape[1:])
                fake = one_step(generator.module, z, part.class_labels, sigma=sigma)
                logits = discriminator.module(fake, part.class_labels)
                loss = objectives.generator_loss(logits)
                generator.backward(part.share * loss)
                report("loss/generator", loss, len(part))
        generator.set_progress(run.images + batch_size)
        generator.step()

        for part in parts:
            z = latents(seed, Stream.DISCRIMINATOR, part.index, part.images.shape[1:])
            with torch.no_grad():
                fake = one_step(generator.module, z, part.class_labels, sigma=sigma)
            fake_logits = discriminator.module(fake, part.class_labels)
            real_logits = discriminator.module(part.images, part.class_labels)
            loss = objectives.discriminator_loss(real=real_logits, fake=fake_logits)
            discriminator.backward(part.share * loss)
            report("loss/discriminator", loss, len(part))
            report("logits/real", torch.cat(real_logits, dim=1), len(part))
            report("logits/fake", torch.cat(fake_logits, dim=1), len(part))
        discriminator.set_progress(run.images + batch_size)
        discriminator.step()
        discriminator.module.iterate_spectral_norm()

        if r1.gamma and run.iterations and run.iterations % r1.interval == 0:
            for part in parts:
                penalty = objectives.r1_penalty(
                    discriminator.module, part.images, part.class_labels
                )
                discriminator.backward(part.share * (r1.interval * r1.gamma / 2) * penalty)
                report("loss/r1", penalty, len(part))
            discriminator.step()
            discriminator.module.iterate_spectral_norm()

        ema.update(images=batch_size, seen=run.images + batch_size)
        run.advance(batch_size)
