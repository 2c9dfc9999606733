"""Memory for the backward pass, counted without computing anything: a forward pass on tensors with
shapes but no values, and the tensors alive after it, without weights and inputs.

Exact for every implementation on any machine; a GPU's allocator and the workspaces of its libraries
add to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasttrain.analysis.speed.networks import generator_of
from fasttrain.analysis.speed.phases import chosen_for_a_gpu, exact_penalty
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.norms import GhostBatchNorm
from fasttrain.discriminator.own import OwnFeatures
from fasttrain.models.build import new_network, prepare_network
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings
from fasttrain.training.objectives import gan as objectives
from fasttrain_kernels import using

__all__ = ["Alive", "discriminator_bytes", "generator_bytes", "kept_per_image"]

BATCH = 4
CPU = torch.device("cpu")


class Alive(TorchDispatchMode):
    """The storages that operators create."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self) -> int:
        return sum(size for reference, size in self.storages.values() if not reference.expired())


warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")


def kept_per_image(forward: Callable[[int], Tensor], batch: int = BATCH) -> int:
    """Bytes for each image that `forward(number of images)`, on tensors without values, keeps for
    the backward pass of its result, without the constant part, which belongs to the weights."""
    counts = []
    for images in (batch, batch // 2):
        with Alive() as alive:
            result = forward(images)
            counts.append(alive.bytes() - result.untyped_storage().nbytes())
        del result, alive
    return (counts[0] - counts[1]) // (batch - batch // 2)


def generator_bytes(settings: FinetuneSettings) -> int:
    """Bytes for each image that the generator keeps in its own step, on `settings.kernels`."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with chosen_for_a_gpu(), using(settings.kernels), fake:
        network = generator_of(settings, "cpu")
        prepare_network(network, settings, CPU)
        size = network.img_resolution

        def forward(images: int) -> Tensor:
            noise = torch.randn(images, network.img_channels, size, size)
            labels = torch.zeros(images, network.label_dim) if network.label_dim else None
            return Sampler.of(settings)(network, noise, labels)

        return kept_per_image(forward)


def discriminator_bytes(
    settings: FinetuneSettings, discriminator: ProjectedDiscriminator, dtype: torch.dtype
) -> dict[str, int]:
    """Bytes for each image that the discriminator keeps: in the generator's `step`, where gradients
    reach the images; in its `own` step, for a real image and a fake; and for exact `r1` (or 0),
    where the first backward pass is kept too, with feature networks in `r1.features`."""
    network = settings.network
    size, channels = network.img_resolution, network.img_channels
    every = discriminator.features
    discriminator.features = tuple(f for f in every if not isinstance(f, OwnFeatures))
    for kind in (dtype, torch.float32):  # create the copies of weights in other dtypes once
        with torch.no_grad(), discriminator.in_precision(kind):
            discriminator.look(torch.zeros(1, channels, size, size))
    discriminator.features = every
    norms = [module for module in discriminator.modules() if isinstance(module, GhostBatchNorm)]
    groups = [norm.group for norm in norms]
    for norm in norms:
        norm.group = 1  # counts do not depend on it, and batches of four suffice
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _own(every, settings):

            def shown(images: int) -> Tensor:
                return torch.randn(images, channels, size, size)

            def labels(images: int) -> Tensor | None:
                return torch.zeros(images, network.label_dim) if network.label_dim else None

            def step(images: int) -> Tensor:
                logits = discriminator(shown(images).requires_grad_(), labels(images))
                return objectives.generator_loss(logits)

            def own(images: int) -> Tensor:
                pair = [shown(images), shown(images)]
                real, fake = discriminator.together(pair, labels(images))
                return objectives.discriminator_loss(real=real, fake=fake).loss

            def r1(images: int) -> Tensor:
                penalty = settings.r1 if settings.r1.lazy_interval else settings.r2
                return exact_penalty(discriminator, penalty, shown(images), labels(images))

            with discriminator.in_precision(dtype):
                counts = {"step": kept_per_image(step), "own": kept_per_image(own)}
            with discriminator.in_precision(torch.float32):
                counts["r1"] = kept_per_image(r1) if settings.lazy_interval else 0
    finally:
        for norm, group in zip(norms, groups, strict=True):
            norm.group = group
    return counts


@contextmanager
def _own(features: Sequence[Any], settings: FinetuneSettings) -> Iterator[None]:
    """Context in which a discriminator's copy of the diffusion model has weights without values, on
    the kernels of the run."""
    own = [network for network in features if isinstance(network, OwnFeatures)]
    before = [network.network for network in own]
    for each in own:
        each.network = new_network("edm", settings.network).eval().requires_grad_(False)
        prepare_network(each.network, settings, CPU)
    try:
        with chosen_for_a_gpu(), using(settings.kernels) if own else nullcontext():
            yield
    finally:
        for each, network in zip(own, before, strict=True):
            each.network = network
