"""D2O and D2O-F: a diffusion model becomes a one-step generator by GAN fine-tuning alone
(Zheng and Yang, "Revisiting Diffusion Models: From Generative Pre-training to One-Step
Generation", ICML 2025).

The generator is the diffusion U-Net evaluated once, x = G(sigma z, sigma) at sigma = 80, or twice
when there is a `sigma_mid`. With most of its convolutions frozen (D2O-F) it is trained against a
projected discriminator with the non-saturating loss, lazy R1 and an average of what trains. `train`
is the algorithm.

    finetune(load_settings("digits-d2o-f", [], FinetuneSettings), start())
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from fasttrain import checkpoint
from fasttrain.average import Average
from fasttrain.checkpoint import write_atomic
from fasttrain.data import Batch, ImageStream, open_stream
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.peers import Peers, peers_of
from fasttrain.discriminator.precision import agreement
from fasttrain.discriminator.weights import find_weights
from fasttrain.distributed import World
from fasttrain.draws import Stream, latents
from fasttrain.ema import EMA
from fasttrain.engines import Engine, make_engine
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.freezing import apply_freezing, audit
from fasttrain.gan import Gan
from fasttrain.generation import class_labels_of, generate
from fasttrain.models import (
    activation_dtype,
    load_weights,
    new_discriminator,
    new_network,
    open_model,
    prepare_network,
    restore_base,
)
from fasttrain.origins import origin_as_base
from fasttrain.run import Run
from fasttrain.sampler import Sampler
from fasttrain.saved import BASE, keep_base
from fasttrain.settings import FinetuneSettings
from fasttrain_kernels import using

__all__ = ["finetune", "train"]


def finetune(settings: FinetuneSettings, world: World) -> None:
    """Train, or go on training, the run that the settings name.

    Raises UserError for what the user can mend: data, base model, run directory, settings.
    """
    for backbone in settings.discriminator.backbones:  # what is missing is said before anything
        if backbone.weights != "random":
            find_weights(backbone.name, backbone.weights)
    stream = open_stream(settings, world)  # its readers start with the first batch
    peers = peers_of(settings.batch, settings.discriminator.norm_group, world)
    evaluator = Evaluator(settings, world)  # has the data set enough images?
    generator = new_network("one_step", settings.network, settings.kernels)
    generator.eval()  # no dropout: its draws would depend on the batch and the rank
    origin = None
    if not checkpoint.steps(settings.run / "checkpoints"):  # before anything is written
        origin = load_init(settings, generator)
    with using(settings.kernels), closing(stream), closing(Run(settings, world)) as run:
        load_base(settings, run, generator, origin)
        write_audit(run, generator)
        g_engine, d_engine = build_engines(settings, run, generator, peers)
        ema = EMA(g_engine, half_life=settings.ema.half_life, fraction=settings.ema.fraction)
        average = Average(settings, world, g_engine, ema, Sampler.of(settings), evaluator)
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
        with run:
            train(settings, run, g_engine, d_engine, ema, stream)


def load_init(settings: FinetuneSettings, generator: Any) -> dict[str, str]:
    """Give the generator the model that `init` names; where that model came from."""
    init = open_model(settings.init)
    load_weights(generator, init)
    return origin_as_base(init.origin)


def load_base(
    settings: FinetuneSettings, run: Run, generator: Any, origin: dict[str, str] | None
) -> None:
    """Give the generator the model that the run begins, or began, with, and keep that model in the
    run directory: checkpoints hold what trains alone, and name the rest by its SHA-256.

    origin: of the model that the generator has from `init` already; None when it has none yet.
    """
    start, world = run.start, run.world
    if start is None:
        if origin is None:  # all checkpoints are damaged
            origin = load_init(settings, generator)
        found = world.on_main(lambda: keep_base(run.path, generator.state_dict()))
    else:
        world.on_main(lambda: restore_base(run.path, start, settings.init, generator))
        found = start.state["base"]["sha256"]
        origin = start.state["base"].get("origin", {})
        load_weights(generator, run.path / BASE)
    apply_freezing(generator.model, settings.freeze)
    prepare_network(generator, settings, world.device)
    frozen = str(activation_dtype(settings, world.device)).removeprefix("torch.")
    run.base = {"sha256": found, "frozen": frozen} | ({"origin": origin} if origin else {})


def build_engines(
    settings: FinetuneSettings, run: Run, generator: Any, peers: Peers | None
) -> tuple[Engine[Any], Engine[ProjectedDiscriminator]]:
    """Of the generator and of the discriminator, which is built here."""
    world, engine = run.world, settings.engine
    torch.manual_seed(settings.seed)
    fresh = run.start is None
    discriminator = new_discriminator(settings, world.device, fresh=fresh, peers=peers)
    d_engine = make_engine(
        discriminator,
        settings.discriminator.optimizer,
        engine,
        world,
        stage=engine.discriminator_stage(),
        trained=discriminator.heads,
        lazy_interval=settings.r1.lazy_interval,
    )
    return make_engine(generator, settings.generator, engine, world), d_engine


def write_audit(run: Run, generator: Any) -> None:
    """Print what trains, and keep it in the run directory."""
    table = audit(generator.model)
    if run.world.is_main:
        print(table.table())
    as_json = json.dumps(table.to_dict(), indent=1)
    run.world.on_main(lambda: write_atomic(run.path / "audit.json", as_json))


def describe(
    settings: FinetuneSettings,
    run: Run,
    start: Callable[[], Any],
    discriminator: ProjectedDiscriminator,
) -> None:
    """Write `discriminator.json`: what it looks through, which of that is untrained, and what its
    precision does to the logits and image gradients of the start's images."""
    cosines: dict[str, dict[str, float]] = {}
    if discriminator.precision == torch.bfloat16:
        network, device = start(), run.world.device
        if run.world.is_main:
            held = min(settings.discriminator.norm_group, settings.batch // run.world.size)
            seeds = torch.arange(held, device=device)
            images = generate(Sampler.of(settings), network, seeds.tolist()).to(device)
            labels = class_labels_of(seeds, settings.network.label_dim)
            with discriminator.alone():
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
    as_json = json.dumps(found, indent=1)
    run.world.on_main(lambda: write_atomic(run.path / "discriminator.json", as_json))


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
    sampler, judge = Sampler.of(settings), discriminator.module
    gan = Gan(settings, judge)

    def make(part: Batch, purpose: Stream) -> Tensor:
        z = latents(run.seed, purpose, part.index, part.images.shape[1:])
        return sampler(generator, z, part.class_labels)

    while run.images < settings.images:
        parts = run.read(stream).to(run.world.device).split(settings.micro_batch)
        fakes: list[Tensor] = []

        with judge.frozen():  # its parameters collect no gradient here
            for part in parts:
                fake = make(part, Stream.GENERATOR)
                generator.backward(part.share * gan.generator_loss(part, fake, run.seed))
                if settings.reuse_fakes:
                    fakes.append(fake.detach())
        run.step(generator, "generator")

        for k, part in enumerate(parts):
            with torch.no_grad():
                fake = fakes[k] if fakes else make(part, Stream.DISCRIMINATOR)
            discriminator.backward(part.share * gan.discriminator_loss(part, fake, run.seed))
        if run.step(discriminator, "discriminator"):
            judge.iterate_spectral_norm()

        if run.every(settings.r1.lazy_interval):
            for part in parts:
                discriminator.backward(part.share * gan.lazy_r1(part, run.seed))
            if run.step(discriminator, "r1"):
                judge.iterate_spectral_norm()

        ema.update(images=settings.batch, seen=run.images + settings.batch)
        run.advance(settings.batch)
