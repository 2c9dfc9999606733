"""The phases of a fine-tuning's iteration, traced on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.model.trace import Launch, Trace, fused_attention
from fasttrain.analysis.planning.sizes import discriminator_of, generator_of
from fasttrain.analysis.profiling.columns import EAGER, LIBRARY, Column
from fasttrain.models.build import prepare_network
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings
from fasttrain.training.objectives import gan as objectives
from fasttrain_kernels import dispatch, using

__all__ = ["COLUMNS", "generator_phases", "phases"]

META = torch.device("meta")
COLUMNS = {
    "ours": Column("ours", "the network of `fasttrain finetune`", "triton"),
    "library": Column("library", "torch's fused operators", patches=LIBRARY),
    "eager": Column("eager", "plain operators", memory_format="contiguous", patches=EAGER),
}


@contextmanager
def _as_on_a_gpu(column: Column) -> Iterator[None]:
    """Kernels are chosen for tensors of the meta device; nothing is launched."""
    interpreted, attention = dispatch.INTERPRETED, F.scaled_dot_product_attention
    dispatch.INTERPRETED = True
    F.scaled_dot_product_attention = fused_attention
    try:
        with using(column.kernels), column.operators():
            yield
    finally:
        dispatch.INTERPRETED = interpreted
        F.scaled_dot_product_attention = attention


def _traced(run: Callable[[], Any]) -> tuple[Any, list[Launch]]:
    with Trace() as trace:
        result = run()
    return result, trace.launches


def generator_phases(
    settings: FinetuneSettings, column: Column, images: int
) -> tuple[dict[str, list[Launch]], Tensor]:
    """Launches of a forward and a backward pass of so many images, and these images."""
    settings = settings.model_copy(
        update={"precision": "bfloat16", "compile": False}
        | ({"memory_format": column.memory_format} if column.name == "eager" else {})
    )
    with _as_on_a_gpu(column):
        network = generator_of(settings)
        prepare_network(network, settings, META)
        size = network.img_resolution
        noise = torch.empty(images, network.img_channels, size, size, device=META)
        labels = None
        if network.label_dim:
            labels = torch.empty(images, network.label_dim, device=META)
        sampler = Sampler.of(settings)
        y, forward = _traced(lambda: sampler(network, noise, labels))
        _, backward = _traced(lambda: torch.autograd.backward(y, torch.empty_like(y)))
        with torch.no_grad():
            y, again = _traced(lambda: sampler(network, noise, labels))
    names = ("generator forward", "generator backward", "generator forward, without graph")
    return dict(zip(names, (forward, backward, again), strict=True)), y


def phases(
    settings: FinetuneSettings, column: Column, images: int
) -> dict[str, tuple[list[Launch], float]]:
    """Every phase's launches, and how often it runs in an iteration."""
    generator, fake = generator_phases(settings, column, images)
    found = {name: (launches, 1.0) for name, launches in generator.items()}
    network, count = settings.network, len(fake)
    labels = torch.empty(count, network.label_dim, device=META) if network.label_dim else None
    attention = F.scaled_dot_product_attention
    with ExitStack() as scope:
        scope.enter_context(_as_on_a_gpu(COLUMNS["ours"]))  # the same in every column
        judge = discriminator_of(settings).to(META)
        judge.precision = torch.bfloat16
        for dtype in (torch.bfloat16, torch.float32):  # the copies of weights are made once
            with torch.no_grad(), judge.in_precision(dtype), Trace():
                judge.look(torch.empty_like(fake[:1]))
        shown = fake.detach().requires_grad_()

        def both(name: str, run: Callable[[], Tensor], times: float = 1.0) -> None:
            loss, forward = _traced(run)
            _, backward = _traced(loss.backward)
            found[f"{name} forward"] = (forward, times)
            found[f"{name} backward"] = (backward, times)

        with judge.frozen():
            both("discriminator, generator's step", lambda: objectives.generator_loss(
                judge(shown, labels)))  # fmt: skip
        real = torch.empty_like(fake)

        def own() -> Tensor:
            logits = judge.together([real, fake.detach()], labels)
            return objectives.discriminator_loss(real=logits[0], fake=logits[1]).loss

        both("discriminator's step", own)
        if settings.r1.lazy_interval:
            # torch's fused attention cannot be differentiated twice
            F.scaled_dot_product_attention = attention

            def r1() -> Tensor:
                with judge.in_precision(torch.float32):
                    return objectives.r1_penalty(judge, real, labels)

            both("exact R1", r1, 1 / settings.r1.lazy_interval)
    return found
