"""The passes of a fine-tuning's iteration, traced on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.analysis.speed.networks import discriminator_of, generator_of
from fasttrain.analysis.speed.trace import Launch, Trace, fused_attention
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.models.build import prepare_network
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings, PenaltySettings
from fasttrain.system.switches import tf32
from fasttrain.training.objectives import gan as objectives
from fasttrain.training.objectives.pulled import pulled_r1
from fasttrain_kernels import dispatch, using

__all__ = [
    "OURS",
    "Operators",
    "chosen_for_a_gpu",
    "exact_penalty",
    "generator_phases",
    "phases",
]

META = torch.device("meta")
WITHOUT_GRAPH = "generator forward, without graph"


@dataclass(frozen=True)
class Operators:
    """What the generator runs on. memory_format: None for the settings' own. patched: context in
    which its layers call other operators."""

    kernels: Literal["auto", "triton", "reference"] = "triton"
    memory_format: str | None = None
    patched: Callable[[], AbstractContextManager[None]] = nullcontext


OURS = Operators()


@contextmanager
def chosen_for_a_gpu() -> Iterator[None]:
    """Kernels are chosen for tensors that are on no GPU, also where there is no Triton; nothing may
    be launched."""
    before = dispatch.INTERPRETED, dispatch.HAVE_TRITON
    dispatch.INTERPRETED = dispatch.HAVE_TRITON = True
    try:
        yield
    finally:
        dispatch.INTERPRETED, dispatch.HAVE_TRITON = before


@contextmanager
def _as_on_a_gpu(operators: Operators) -> Iterator[None]:
    attention = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = fused_attention  # type: ignore[assignment]
    try:
        with chosen_for_a_gpu(), tf32(False), using(operators.kernels), operators.patched():
            yield
    finally:
        F.scaled_dot_product_attention = attention


def _traced(run: Callable[[], Any]) -> tuple[Any, list[Launch]]:
    with Trace() as trace:
        result = run()
    return result, trace.launches


def generator_phases(
    settings: FinetuneSettings, operators: Operators, images: int
) -> tuple[dict[str, list[Launch]], Tensor]:
    """Launches of a forward and a backward pass that make `images` images, and their result."""
    layout = operators.memory_format
    changes = {"precision": "bfloat16", "compile": False}
    settings = settings.model_copy(update=changes | ({"memory_format": layout} if layout else {}))
    with _as_on_a_gpu(operators):
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
    names = ("generator forward", "generator backward", WITHOUT_GRAPH)
    return dict(zip(names, (forward, backward, again), strict=True)), y


def phases(
    settings: FinetuneSettings, images: int, operators: Operators = OURS
) -> dict[str, tuple[list[Launch], float]]:
    """Every phase's launches, and how often it runs in an iteration. Precisions are those of a GPU:
    bfloat16, and exact penalties as the settings have them."""
    generator, fake = generator_phases(settings, operators, images)
    found = {name: (launches, 1.0) for name, launches in generator.items()}
    if settings.reuse_fakes:
        del found[WITHOUT_GRAPH]
    network, count = settings.network, len(fake)
    labels = torch.empty(count, network.label_dim, device=META) if network.label_dim else None
    attention = F.scaled_dot_product_attention
    with ExitStack() as scope:
        scope.enter_context(_as_on_a_gpu(OURS))  # the same on all operators
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
        # torch's fused attention cannot be differentiated twice
        F.scaled_dot_product_attention = attention
        for title, penalty in (("exact R1", settings.r1), ("exact R2", settings.r2)):
            if penalty.lazy_interval:
                part = max(1, count // penalty.one_in)
                some = None if labels is None else labels[:part]
                both(title, lambda p=penalty, n=part, some=some: exact_penalty(  # type: ignore[misc]
                    judge, p, real[:n], some), 1 / penalty.lazy_interval)  # fmt: skip
    return found


def exact_penalty(
    judge: ProjectedDiscriminator, penalty: PenaltySettings, images: Tensor, labels: Tensor | None
) -> Tensor:
    """The exact penalty as `fasttrain.training.gan` computes it, without augmentation."""

    @contextmanager
    def looking() -> Iterator[None]:
        dtype = torch.bfloat16 if penalty.features == "bfloat16" else torch.float32
        with judge.in_precision(dtype), tf32(penalty.features == "tf32"):
            yield

    if penalty.inputs == "features":
        with looking():
            looked = judge.look(images, labels)
        with judge.in_precision(torch.float32):
            maps = [[m.detach().float().requires_grad_() for m in part] for part in looked]
            return objectives.squared_gradient(judge.judge(maps, labels), judge.judged(maps))
    with judge.in_precision(torch.float32):
        if penalty.features == "float32":
            return objectives.r1_penalty(judge, images, labels)
        return pulled_r1(
            lambda seen: judge.look(seen, labels),
            lambda maps: (judge.judge(maps, labels), judge.judged(maps)),
            images,
            looking,
        )
