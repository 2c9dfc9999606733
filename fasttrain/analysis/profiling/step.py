"""The timed training iteration: `fasttrain.training.finetune.train` itself, on synthetic data, with
a stamp at each relevant call.

A segment between two stamps belongs to one phase, so the phases of an iteration add up to it
exactly. Stamps are added from outside (hooks and subclasses), so the measured loop is the one that
trains.

    trainer = Trainer(settings, generator, discriminator, meter)
    trainer.iterate()                             # one iteration, R1 due or not
    phases_of(trainer.stamped(r1=False))          # see `fasttrain.analysis.profiling.phases`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.profiler import record_function

from fasttrain.analysis.profiling.meter import Meter
from fasttrain.analysis.profiling.phases import AVERAGE, OPTIMIZER, Event
from fasttrain.data.batch import Batch
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.settings import FinetuneSettings, RunSettings
from fasttrain.system.processes import World
from fasttrain.training import log as metrics
from fasttrain.training.ema import EMA
from fasttrain.training.engines.local import LocalEngine
from fasttrain.training.finetune import train
from fasttrain.training.run.iterations import Iterations

__all__ = ["Stamps", "Trainer", "synthetic_batch"]


def synthetic_batch(settings: RunSettings, device: torch.device, seed: int = 0) -> Batch:
    """Random 8-bit images and labels; not zeros, on which arithmetic costs less power."""
    random = torch.Generator().manual_seed(seed)
    network, count = settings.network, settings.batch
    shape = (count, network.img_channels, network.img_resolution, network.img_resolution)
    images = torch.randint(0, 256, shape, generator=random).float() / 127.5 - 1
    labels = None
    if network.label_dim:
        classes = torch.randint(0, network.label_dim, (count,), generator=random)
        labels = nn.functional.one_hot(classes, network.label_dim).float()
    return Batch(images, labels, torch.arange(count)).to(device)


class Stamps:
    """Begin and end of calls, `(name` and `name)`: recorded while `on`; named ranges for a trace
    while `ranges`."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.on = self.ranges = False
        self.stamps: list[tuple[str, Any]] = []
        self._open: list[AbstractContextManager[Any]] = []

    def begin(self, name: str) -> None:
        self._stamp(f"({name}")
        if self.ranges:
            self._open.append(record_function(name))
            self._open[-1].__enter__()

    def end(self, name: str) -> None:
        if self.ranges:
            self._open.pop().__exit__(None, None, None)
        self._stamp(f"{name})")

    def _stamp(self, event: str) -> None:
        if self.on:
            self.stamps.append((event, self.meter.stamp()))

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        self.begin(name)
        yield
        self.end(name)

    def on_calls_of(self, module: nn.Module, name: str) -> None:
        module.register_forward_pre_hook(lambda *_: self.begin(name))
        module.register_forward_hook(lambda *_: self.end(name))

    def events(self) -> list[Event]:
        self.meter.wait()
        first = self.stamps[0][1]
        return [(event, self.meter.milliseconds(first, at)) for event, at in self.stamps]


class _Engine(LocalEngine[Any]):
    stamps: Stamps

    def backward(self, loss: torch.Tensor) -> None:
        with self.stamps.around("backward"):
            super().backward(loss)

    def step(self) -> bool:
        with self.stamps.around(OPTIMIZER):
            return super().step()


class _EMA(EMA):
    stamps: Stamps

    def update(self, *, images: int, seen: int) -> None:
        with self.stamps.around(AVERAGE):
            super().update(images=images, seen=seen)


class _Run(Iterations):
    """A run as the loop needs it; it writes nothing."""

    seed = 0

    def __init__(self, settings: FinetuneSettings, device: torch.device) -> None:
        super().__init__(settings)
        self.world = World(0, 1, device)

    def read(self, stream: Iterator[Batch]) -> Batch:
        return next(stream)

    def tried(self, name: str, applied: bool) -> None:
        if not applied:
            raise FloatingPointError(f"{name}: a loss or gradient is not finite")

    def advance(self, images: int) -> None:
        self.images += images


class Trainer:
    """A generator and a discriminator as in `finetune`; each call runs one iteration."""

    def __init__(
        self,
        settings: FinetuneSettings,
        generator: Any,
        discriminator: ProjectedDiscriminator,
        meter: Meter,
    ) -> None:
        self.settings = settings.model_copy(update={"images": settings.batch})
        self.generator, self.discriminator = generator, discriminator
        self.run = _Run(self.settings, meter.device)
        self.stamps = Stamps(meter)
        self.g_engine = _Engine(generator, settings.generator)
        self.d_engine = _Engine(
            discriminator,
            settings.discriminator.optimizer,
            trained=discriminator.heads,
            lazy_interval=settings.lazy_interval,
        )
        self.ema = _EMA(self.g_engine, **settings.ema.model_dump())
        self.g_engine.stamps = self.d_engine.stamps = self.ema.stamps = self.stamps
        self.batch = synthetic_batch(settings, meter.device)
        self.hooked = False

    def iterate(self, *, r1: bool = False) -> None:
        """One iteration, with `r1` one that ends with an R1 step."""
        self.run.images = 0
        self.run.iterations = self.settings.r1.interval if r1 else 0
        forever = iter(lambda: self.batch, None)
        train(
            self.settings,
            cast(Any, self.run),
            self.g_engine,
            self.d_engine,
            self.ema,
            cast(Any, forever),
        )
        metrics.reset()

    def stamped(self, *, r1: bool) -> list[Event]:
        """One iteration's events."""
        self._hook()
        self.stamps.stamps.clear()
        self.stamps.meter.wait()
        self.stamps.on = True
        with self.stamps.around("iteration"):
            self.iterate(r1=r1)
        self.stamps.on = False
        return self.stamps.events()

    @contextmanager
    def ranges(self) -> Iterator[None]:
        """Context in which calls are named ranges of a trace."""
        self._hook()
        self.stamps.ranges = True
        yield
        self.stamps.ranges = False

    def _hook(self) -> None:
        if not self.hooked:
            self.stamps.on_calls_of(self.generator, "forward G")
            self.stamps.on_calls_of(self.discriminator, "forward D")
            self.hooked = True
