"""Check that the columns compute the same: images and gradients of each on a few samples, compared
with the eager column's in float32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasttrain.analysis.profiling.columns import Column
from fasttrain.data.batch import Batch
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.solvers import one_step

__all__ = ["TOLERANCE", "Check", "Results", "compare", "results_of"]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Relative L2 error that a column's images and gradient may have, or twice eager's own in the same
dtype; a single part of the gradient, whose numbers are often small, four times as much, or three
times eager's. Eager itself is the yardstick, unless it is beyond `SENSE`."""
SENSE = 0.5


@dataclass(frozen=True)
class Results:
    """Images, and gradients of all trained parameters by part of the network."""

    images: Tensor
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Check:
    """Relative L2 errors against float32: of the images, the whole gradient, and its parts. wrong:
    names beyond their limit."""

    images: float
    gradient: float
    parts: Mapping[str, float]
    wrong: tuple[str, ...] = ()


def results_of(column: Column, network: Any, batch: Batch, sigma: float, samples: int) -> Results:
    """Results of a column's network: the first `samples` images of the batch's latents, and
    gradients of their product with fixed random numbers. The whole batch goes through the network,
    so that its shape is the timed (and compiled) one; samples do not mix, so the others change
    nothing."""
    z = latents(0, Stream.GENERATOR, batch.index, batch.images.shape[1:])
    direction = latents(0, Stream.DISCRIMINATOR, batch.index[:samples], batch.images.shape[1:])
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with column.operators():
        images = one_step(network, z, batch.class_labels, sigma=sigma)[:samples]
        gradients = torch.autograd.grad((images * direction).sum(), list(trained.values()))
    parts: dict[str, list[Tensor]] = {}
    for name, gradient in zip(trained, gradients, strict=True):
        parts.setdefault(part_of(name), []).append(gradient.flatten().double())
    return Results(images.detach().double(), {part: torch.cat(g) for part, g in parts.items()})


def part_of(name: str) -> str:
    """`model.enc.32x32_block0.norm0.weight` -> `block.norm0.weight`."""
    *path, layer, kind = name.split(".")
    return ".".join((["block"] if len(path) > 2 else []) + [re.sub(r"^\d+x\d+_", "", layer), kind])


def compare(results: Results, exact: Results, eager: Check | None, dtype: torch.dtype) -> Check:
    """Errors of a column's results; `eager`: the check of the eager column in the same dtype, None
    for that column itself."""
    parts = {
        part: _error(results.gradients[part], exact.gradients[part]) for part in exact.gradients
    }
    both = [torch.cat([r.gradients[part] for part in parts]) for r in (results, exact)]
    images, gradient = _error(results.images, exact.images), _error(*both)

    def limit(least: float, own: float) -> float:
        return SENSE if eager is None else max(least * TOLERANCE[dtype], own)

    wrong = []
    if not images <= limit(1, 2 * eager.images if eager else 0):
        wrong.append("images")
    if not gradient <= limit(1, 2 * eager.gradient if eager else 0):
        wrong.append("gradient")
    for part, error in parts.items():
        if not error <= 2 * limit(2, 1.5 * eager.parts[part] if eager else 0):
            wrong.append(f"gradient of {part}")
    return Check(images, gradient, parts, tuple(wrong))


def _error(result: Tensor, exact: Tensor) -> float:
    return float((result - exact).norm() / exact.norm().clamp(min=1e-30))
