"""What `benchmarks.cpu_step` measures: a column's units of work, on the same weights and images.

with operators(column):
    units = UNITS["fine-tuning"](column, "digits-d2o-f")
    units["iteration"]()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fasttrain.analysis.profiling.columns import EAGER, Column, random_weights
from fasttrain.analysis.profiling.meter import Meter
from fasttrain.analysis.profiling.step import Trainer, synthetic_batch
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.build import new_discriminator
from fasttrain.models.build import new_network, prepare_network
from fasttrain.models.precision import compute_in, decided
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.training.engines.local import LocalEngine
from fasttrain.training.objectives.diffusion import edm_loss
from tests.discriminator.plain_discriminator import PlainDiscriminator

__all__ = ["EVALUATIONS", "UNITS", "Unit", "operators"]

CPU = torch.device("cpu")
PLAIN = ["precision=float32", "memory_format=contiguous", "kernels=reference"]
EVALUATIONS = 9
"""Of a sampling unit: five Heun steps, 64 images."""

Unit = Callable[[], None]


class PlainJudge(nn.Module):
    """The plain discriminator, called as the training loop calls ours."""

    precision = None

    def __init__(self, ours: ProjectedDiscriminator) -> None:
        super().__init__()
        self.heads = ours.heads
        self._ours, self._plain = [ours], PlainDiscriminator(ours)  # a list: no second registration

    def forward(
        self, images: Tensor, class_labels: Tensor | None = None, _: Tensor | None = None
    ) -> list[Tensor]:
        return self._plain(images, class_labels)

    def together(
        self, batches: list[Tensor], class_labels: Tensor | None = None, _: Tensor | None = None
    ) -> list[list[Tensor]]:
        return [self(images, class_labels) for images in batches]

    def frozen(self) -> Any:
        return self._ours[0].frozen()

    def in_precision(self, _: torch.dtype) -> Any:
        return nullcontext(self)

    def iterate_spectral_norm(self) -> None:
        self._plain.iterate_spectral_norm()


@contextmanager
def operators(column: str) -> Iterator[None]:
    """Inside, networks run on the column's operators."""
    with Column("published", "", patches=EAGER if column == "published" else {}).operators():
        yield


def finetuning(column: str, recipe: str) -> dict[str, Unit]:
    """An iteration without and one with exact R1."""
    changes = ["discriminator.class_embedding=random", "discriminator.precision=auto"]
    if column == "published":
        changes = [*PLAIN, changes[0], "discriminator.precision=float32"]
    settings, _ = decided(load_settings(recipe, changes, FinetuneSettings), CPU)
    weights = random_weights(settings, CPU)
    network = Column(column, "", settings.kernels).network(
        weights, settings, CPU, memory_format=settings.memory_format
    )
    torch.manual_seed(0)
    judge: Any = new_discriminator(settings, CPU, fresh=True)
    if column == "published":
        judge = PlainJudge(judge)
    trainer = Trainer(settings, network, judge, Meter(CPU))
    return {
        "iteration": lambda: trainer.iterate(),
        "iteration with R1": lambda: trainer.iterate(r1=True),
    }


def diffusion(column: str, recipe: str) -> dict[str, Unit]:
    """A pre-training step, and Heun steps as `sample --precision auto` runs them."""
    changes = PLAIN if column == "published" else []
    settings, _ = decided(load_settings(recipe, changes, PretrainSettings), CPU)
    torch.manual_seed(0)
    network = new_network("edm", settings.network)
    with torch.no_grad():
        for parameter in network.parameters():  # none is zero, so that every path carries numbers
            if parameter.dim() > 1 and float(parameter.std()) < 1e-3:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    looked_at = new_network("edm", settings.network)
    looked_at.load_state_dict(network.state_dict())
    prepare_network(network, settings, CPU)
    looked_at.eval().requires_grad_(False)
    compute_in(looked_at, str(settings.precision))
    engine: LocalEngine[Any] = LocalEngine(network, settings.optimizer)
    as_finetuned: Any = settings
    batch = synthetic_batch(as_finetuned, CPU)
    level = latents(0, Stream.NOISE_LEVEL, batch.index, (1, 1, 1))
    noise = latents(0, Stream.NOISE, batch.index, batch.images.shape[1:])

    def pretrain() -> None:
        loss = edm_loss(
            engine, batch.images, level, noise, batch.class_labels, None,
            p_mean=settings.p_mean, p_std=settings.p_std,
        )  # fmt: skip
        engine.backward(loss.mean())
        engine.step()

    def sample() -> None:
        with torch.no_grad():
            Sampler("heun", steps=(EVALUATIONS + 1) // 2)(looked_at, noise, batch.class_labels)

    return {"pre-training step": pretrain, "sampling": sample}


UNITS = {"fine-tuning": finetuning, "diffusion": diffusion}
