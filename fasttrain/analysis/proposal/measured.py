"""Time and memory of a recipe's training on this machine, measured with its own loop in seconds.

    pace, micro_batch = fitted(settings, torch.device("cuda"))
    pace.images_per_second, pace.gigabytes

The loop, the engines and the networks are those that train; the images are noise, and nothing is
read or written. A second iteration is timed, after one that warms up.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from fasttrain.analysis.profiling.meter import Meter
from fasttrain.analysis.profiling.step import Trainer, synthetic_batch
from fasttrain.discriminator.build import new_discriminator
from fasttrain.models.build import new_network, prepare_network
from fasttrain.models.freezing import apply_freezing
from fasttrain.settings import FinetuneSettings, PretrainSettings, RunSettings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from fasttrain.training import log as metrics
from fasttrain.training.ema import EMA
from fasttrain.training.engines.local import LocalEngine
from fasttrain.training.pretrain import train
from fasttrain.training.run.iterations import Iterations
from fasttrain_kernels import using

__all__ = ["Pace", "fitted", "measure"]


@dataclass(frozen=True)
class Pace:
    """Images a second, and the largest memory: of the GPU, or of the process on a CPU."""

    images_per_second: float
    gigabytes: float

    def hours(self, images: int) -> float:
        return images / self.images_per_second / 3600


def measure(settings: RunSettings, device: torch.device) -> Pace:
    """Train two iterations of the settings on a device, and time the second; of fine-tuning with
    its share of R1. Raises torch.OutOfMemoryError when they do not fit."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with using(settings.kernels):
        if isinstance(settings, FinetuneSettings):
            iterate = _finetuning(settings, device)
            iterate(r1=False)
            seconds = _seconds(lambda: iterate(r1=False), device)
            if interval := settings.lazy_interval:
                more = _seconds(lambda: iterate(r1=True), device) - seconds
                seconds += max(more, 0.0) / interval
        else:
            once = _pretraining(cast(PretrainSettings, settings), device)
            once()
            seconds = _seconds(once, device)
    return Pace(settings.batch / seconds, _gigabytes(device))


def fitted(settings: RunSettings, device: torch.device) -> tuple[Pace, int | None]:
    """The pace, and the largest micro-batch that fits a GPU: the settings' own, or a half of it, a
    quarter, ... Raises UserError when none fits."""
    whole = settings.whole if isinstance(settings, FinetuneSettings) else 1
    while True:
        try:
            return measure(settings, device), settings.micro_batch
        except torch.OutOfMemoryError:
            micro = settings.micro_batch or settings.batch
        gc.collect()  # outside the handler, whose traceback keeps the memory
        torch.cuda.empty_cache()
        if micro % 2 or (micro // 2) % whole:
            raise UserError(
                f"{micro} images of {settings.network.img_resolution} pixels at once do not fit "
                "this GPU's memory, and there is no smaller micro_batch: choose a smaller "
                "--resolution, or another model for --init"
            )
        settings = settings.model_copy(update={"micro_batch": micro // 2})


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _finetuning(settings: FinetuneSettings, device: torch.device) -> Callable[..., None]:
    judge = settings.discriminator.model_copy(update={"class_embedding": "random"})
    settings = settings.model_copy(update={"discriminator": judge})
    generator = new_network("one_step", settings.network).eval()
    apply_freezing(generator.model, settings.freeze)
    prepare_network(generator, settings, device)
    discriminator = new_discriminator(settings, device, fresh=True)
    return Trainer(settings, generator, discriminator, Meter(device)).iterate


def _pretraining(settings: PretrainSettings, device: torch.device) -> Callable[[], None]:
    settings = settings.model_copy(update={"images": settings.batch})
    network = new_network("edm", settings.network)
    prepare_network(network, settings, device)
    engine: LocalEngine[Any] = LocalEngine(network, settings.optimizer)
    ema = EMA(engine, half_life=settings.ema.half_life, fraction=settings.ema.fraction)
    batch = synthetic_batch(settings, device)

    def iterate() -> None:
        train(settings, cast(Any, _Run(settings, device)), engine, ema, cast(Any, iter([batch])))
        metrics.reset()

    return iterate


class _Run(Iterations):
    """A run as the loop needs it; it writes nothing."""

    seed = 0

    def __init__(self, settings: RunSettings, device: torch.device) -> None:
        super().__init__(settings)
        self.world = World(0, 1, device)

    def read(self, stream: Any) -> Any:
        return next(stream)

    def tried(self, name: str, applied: bool) -> None:
        """Noise for images may give a step that cannot be applied; its time is the same."""

    def advance(self, images: int) -> None:
        self.images += images
