"""Generative pre-training: a denoiser trained with the EDM loss (Karras et al. 2022, table 1).

pretrain(load_settings("digits-edm", [], PretrainSettings), start())
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.data import ImageStream
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.models.build import new_network, prepare_network
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import PretrainSettings
from fasttrain.system.processes import World
from fasttrain.training.average import Average
from fasttrain.training.continued import load_diffusion
from fasttrain.training.edm_augment import edm_augment
from fasttrain.training.ema import EMA
from fasttrain.training.engines.engine import Engine
from fasttrain.training.engines.make import make_engine
from fasttrain.training.latents import decoder_of, open_data
from fasttrain.training.log import report
from fasttrain.training.objectives.diffusion import edm_loss
from fasttrain.training.run.precision import in_precision
from fasttrain.training.run.progress import say
from fasttrain.training.run.run import Run
from fasttrain_kernels import using

__all__ = ["pretrain", "train"]


def pretrain(settings: PretrainSettings, world: World) -> None:
    """Train the run that the settings name, or resume it.

    Raises UserError for mistakes in data, run directory or settings.
    """
    base, line = None, ""
    begins = settings.init is not None and settings.from_ is None
    if begins:  # unless there is a checkpoint that is not damaged
        folder = settings.run / "checkpoints"
        begins = world.on_main(lambda: checkpoint.newest(folder)) is None
    with world.agreed():  # before anything is written
        stream = open_data(settings, world)
        # Raises if the data set has too few images.
        evaluator = Evaluator(settings, world) if settings.evaluate.every is not None else None
        torch.manual_seed(settings.seed)
        network = new_network("edm", settings.network)
        if begins:
            base, line = load_diffusion(settings, network, stream.manifest)
    with using(settings.kernels), closing(stream), closing(Run(settings, world)) as run:
        settings = in_precision(settings, run)
        run.base = base if run.start is None else run.start.state.get("base")
        if line:
            say(settings, world, f"begins with {settings.init}: {line}")
        prepare_network(network, settings, world.device)
        engine = make_engine(network, settings.optimizer, settings.engine, world)
        ema = EMA(engine, half_life=settings.ema.half_life, fraction=settings.ema.fraction)
        decoder = decoder_of(settings, stream)
        average = Average(settings, world, engine, ema, Sampler.of(settings), evaluator, decoder)
        run.resume(stream, average, network=engine, ema=ema)
        with run:
            train(settings, run, engine, ema, stream)


def train(
    settings: PretrainSettings, run: Run, engine: Engine[Any], ema: EMA, stream: ImageStream
) -> None:
    """The loop: each image gets its own augmentation, noise level and noise, functions of its
    index."""
    draws_of_torch = settings.network.dropout or settings.network.label_dropout
    while not run.ended:
        batch = run.read(stream).to(run.world.device)
        if draws_of_torch:  # dropout: the same after a resume, at the same world size
            torch.manual_seed(hash((run.seed, run.iterations, run.world.rank)) % 2**63)
        for part in batch.split(settings.micro_batch):
            level = latents(run.seed, Stream.NOISE_LEVEL, part.index, (1, 1, 1))
            noise = latents(run.seed, Stream.NOISE, part.index, part.images.shape[1:])
            images, told = part.images, None
            if settings.augment:
                images, told = edm_augment(images, settings.augment, run.seed, part.index)
            loss = edm_loss(
                engine,
                images,
                level,
                noise,
                part.class_labels,
                told,
                p_mean=settings.p_mean,
                p_std=settings.p_std,
                sigma_data=settings.network.prediction.sigma_data,
            )
            engine.backward(part.share * loss.mean())
            report("loss/denoising", loss, len(part))
        run.step(engine, "denoiser")
        ema.update(images=settings.batch, seen=run.seen)
        run.advance(settings.batch)
