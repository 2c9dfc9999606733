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
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fasttrain import checkpoint, objectives
from fasttrain.augment import augment
from fasttrain.checkpoint import write_atomic
from fasttrain.data import Batch, ImageStream
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.precision import agreement
from fasttrain.discriminator.weights import find_weights
from fasttrain.distributed import World
from fasttrain.draws import Stream, latents
from fasttrain.ema import EMA
from fasttrain.engines import Engine, make_engine
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.freezing import apply_freezing, audit
from fasttrain.generation import class_labels_of, generate
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

FINE_ENOUGH = 0.05
"""Noise of this deviation is seen in bfloat16, too (images are in [-1, 1])."""


def finetune(settings: FinetuneSettings, world: World) -> None:
    """Train, or go on training, the run that the settings name.

    Raises UserError for what the user can mend: data, base model, run directory, settings.
    """
    for backbone in settings.discriminator.backbones:  # what is missing is said before anything
        if backbone.weights != "random":
            find_weights(backbone.name, backbone.weights)
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
        lazy_interval=settings.r1.lazy_interval,
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
    if run.start is None:
        world.on_main(lambda: describe(settings, run, generator, discriminator))
    with run:
        train(settings, run, g_engine, d_engine, ema, stream)


def describe(
    settings: FinetuneSettings, run: Run, generator: Any, discriminator: ProjectedDiscriminator
) -> None:
    """Write `discriminator.json`: what it looks through, which of that is untrained, and what its
    precision does to the logits and image gradients of the start's images."""
    cosines: dict[str, dict[str, float]] = {}
    if discriminator.precision == torch.bfloat16:
        count, device = settings.discriminator.norm_group, next(generator.parameters()).device
        images = generate(one_step, generator, range(count), sigma=settings.sigma).to(device)
        labels = class_labels_of(torch.arange(count, device=device), settings.network.label_dim)
        cosines = agreement(discriminator, images, labels)
    rows = [
        {
            "name": backbone.name,
            "resolution": backbone.resolution,
            "random": backbone.weights == "random",
            **cosines.get(backbone.name, {}),
        }
        for backbone in settings.discriminator.backbones
    ]
    found = {"precision": str(discriminator.precision).removeprefix("torch."), "backbones": rows}
    write_atomic(run.path / "discriminator.json", json.dumps(found, indent=1))


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
    judge = discriminator.module

    def fakes(part: Batch, purpose: Stream) -> Tensor:
        z = latents(seed, purpose, part.index, part.images.shape[1:])
        return one_step(generator.module, z, part.class_labels, sigma=sigma)

    def seen(images: Tensor, part: Batch, purpose: Stream) -> Tensor:
        return augment(images, settings.discriminator.augment, seed, purpose, part.index)

    def as_seen(part: Batch, images: Tensor, class_labels: Tensor | None) -> list[Tensor]:
        return judge(seen(images, part, Stream.AUGMENT_R1), class_labels)

    while run.images < settings.images:
        batch = next(stream).to(run.world.device)
        parts = batch.split(settings.micro_batch)
        made: list[Tensor] = []

        with judge.frozen():  # its parameters collect no gradient here
            for part in parts:
                fake = fakes(part, Stream.GENERATOR)
                logits = judge(seen(fake, part, Stream.AUGMENT_GENERATOR), part.class_labels)
                loss = objectives.generator_loss(logits, settings.loss)
                generator.backward(part.share * loss)
                report("loss/generator", loss, len(part))
                if settings.reuse_fakes:
                    made.append(fake.detach())
        generator.set_progress(run.images + batch_size)
        generator.step()

        for k, part in enumerate(parts):
            with torch.no_grad():
                fake = made[k] if settings.reuse_fakes else fakes(part, Stream.DISCRIMINATOR)
            real = seen(part.images, part, Stream.AUGMENT_REAL)
            fake = seen(fake, part, Stream.AUGMENT_FAKE)
            judged, penalty = judged_pair(settings, judge, part, real, fake)
            total = judged.loss if penalty is None else judged.loss + r1.weight * penalty
            discriminator.backward(part.share * total)
            report("loss/discriminator", judged.loss, len(part))
            report("logits/real", judged.real, len(part))
            report("logits/fake", judged.fake, len(part))
            if penalty is not None:
                report("loss/r1", penalty, len(part))
        discriminator.set_progress(run.images + batch_size)
        discriminator.step()
        judge.iterate_spectral_norm()

        if r1.lazy_interval and run.iterations and run.iterations % r1.lazy_interval == 0:
            for part in parts:
                with judge.in_precision(torch.float32):
                    penalty = objectives.r1_penalty(
                        partial(as_seen, part), part.images, part.class_labels
                    )
                discriminator.backward(part.share * (r1.interval * r1.gamma / 2) * penalty)
                report("loss/r1", penalty, len(part))
            discriminator.step()
            judge.iterate_spectral_norm()

        ema.update(images=batch_size, seen=run.images + batch_size)
        run.advance(batch_size)


def judged_pair(
    settings: FinetuneSettings,
    judge: ProjectedDiscriminator,
    part: Batch,
    real: Tensor,
    fake: Tensor,
) -> tuple[objectives.DiscriminatorLoss, Tensor | None]:
    """The discriminator's loss on real images and fakes, and the approximated R1 if it is wanted.

    One pass for all, so what is seen of the real images serves both; but a penalty whose noise
    bfloat16 cannot tell from its own rounding has a pass of its own, in float32.
    """
    r1, labels, batches = settings.r1, part.class_labels, [real, fake]
    noisy, apart = None, False
    if r1.kind == "approximated" and r1.weight:
        noisy = real + r1.sigma * latents(
            settings.seed, Stream.R1_NOISE, part.index, real.shape[1:]
        )
        apart = judge.precision == torch.bfloat16 and r1.sigma < FINE_ENOUGH
        if not apart:
            batches.append(noisy)
    logits = judge.together(batches, labels)
    judged = objectives.discriminator_loss(real=logits[0], fake=logits[1], kind=settings.loss)
    if noisy is None:
        return judged, None
    if apart:
        with judge.in_precision(torch.float32):
            logits = judge.together([real, noisy], labels)
    return judged, objectives.approximated_r1(clean=logits[0], noisy=logits[-1])
