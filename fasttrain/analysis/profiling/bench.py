"""The measurement itself: columns built, warmed up, checked, and timed in turns.

Every method returns plain data for profile.json; `fasttrain.analysis.profiling` documents it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fasttrain.analysis.profiling.checks import Check, Results, compare, results_of
from fasttrain.analysis.profiling.classes import by_class
from fasttrain.analysis.profiling.columns import Column, columns_for, random_weights
from fasttrain.analysis.profiling.meter import Meter, summarise
from fasttrain.analysis.profiling.operators import kept
from fasttrain.analysis.profiling.phases import Phases, phase_table, phases_of
from fasttrain.analysis.profiling.step import Trainer, synthetic_batch
from fasttrain.discriminator.build import new_discriminator
from fasttrain.models.build import activation_dtype
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings
from fasttrain.system.switches import tf32

__all__ = ["Bench"]

CHECKED = 4
"""Number of samples for the comparison of the columns."""

Data = dict[str, Any]


class Bench:
    """All columns on one device, sharing one discriminator and one batch.

    Construction warms everything up, so a lack of memory appears here (torch.OutOfMemoryError). A
    column between eager and ours that fails otherwise is dropped, with its error in `failed`.
    """

    def __init__(
        self,
        settings: FinetuneSettings,
        meter: Meter,
        rates: Mapping[str, Data],
        *,
        compiled: bool,
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.meter, self.say = settings, meter, say
        self.dtype = activation_dtype(settings, meter.device)
        self.rates = rates
        self.columns: dict[str, Column] = {}
        self.trainers: dict[str, Trainer] = {}
        self.checks: dict[str, Check] = {}
        self.warm_up_s: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._build(columns_for(settings, meter.device, compiled))

    def _build(self, columns: tuple[Column, ...]) -> None:
        device = self.meter.device
        weights = random_weights(self.settings, device, self.settings.seed)
        self.batch = synthetic_batch(self.settings, device)
        self.z = latents(0, Stream.GENERATOR, self.batch.index, self.batch.images.shape[1:])
        exact = self._exact(columns[0], weights)
        torch.manual_seed(self.settings.seed)
        self.discriminator = new_discriminator(self.settings, device, fresh=False)
        for column in columns:
            start = time.monotonic()
            try:
                trainer = Trainer(
                    self.settings,
                    column.network(weights, self.settings, device),
                    self.discriminator,
                    self.meter,
                )
                self._warm_up(column, trainer, exact)
            except torch.OutOfMemoryError:
                self.say(f"{column.name}: out of memory at batch {len(self.batch)}")
                raise
            except Exception as error:
                if column.name in ("eager", "ours"):
                    raise
                text = str(error).strip().splitlines() or [""]
                self.failed[column.name] = f"{type(error).__name__}: {text[0]}"[:300]
                self.say(f"{column.name}: dropped, because it failed: {self.failed[column.name]}")
                continue
            self.warm_up_s[column.name] = round(time.monotonic() - start, 1)
            self.columns[column.name], self.trainers[column.name] = column, trainer

    def _exact(self, eager: Column, weights: dict[str, torch.Tensor]) -> Results:
        """The eager column's results in float32, without TF32."""
        network = eager.network(
            weights, self.settings, self.meter.device, precision="float32", compile=False
        )
        with tf32(False):
            few = self.batch.split(CHECKED)[0]
            return results_of(eager, network, few, self.settings.sigma, len(few))

    def _warm_up(self, column: Column, trainer: Trainer, exact: Results) -> None:
        network = trainer.generator
        results = results_of(column, network, self.batch, self.settings.sigma, CHECKED)
        self.checks[column.name] = compare(results, exact, self.checks.get("eager"), self.dtype)
        for _ in range(2):
            self._generator(column, network)
        if not column.compiled:
            with column.operators():
                trainer.iterate()
                trainer.iterate(r1=True)
        self.meter.wait()

    # ------------------------------------------------------------------------------- the generator

    def _parts(self, network: Any) -> tuple[Callable[[], None], Callable[[], None]]:
        """The generator's forward, and its backward from a gradient of its images."""
        images: list[torch.Tensor] = []

        def forward() -> None:
            labels = self.batch.class_labels
            images.append(Sampler.of(self.settings)(network, self.z, labels))

        def backward() -> None:
            images.pop().backward(self.batch.images)

        return forward, backward

    def _generator(self, column: Column, network: Any) -> list[float]:
        """Milliseconds of forward and backward."""
        with column.operators():
            times = self.meter.time(*self._parts(network))
        network.zero_grad(set_to_none=True)
        return times

    def generators(self, repetitions: int) -> dict[str, Data]:
        """Forward plus backward of the generator alone, by column: times, memory, counts."""
        times: dict[str, list[list[float]]] = {name: [] for name in self.columns}
        for _ in range(repetitions):
            for name, column in self.columns.items():
                times[name].append(self._generator(column, self.trainers[name].generator))
        return {name: self._generator_data(name, taken) for name, taken in times.items()}

    def _generator_data(self, name: str, taken: list[list[float]]) -> Data:
        column, network = self.columns[name], self.trainers[name].generator
        forward, backward = zip(*taken, strict=True)
        parameters = list(network.parameters())
        peak = self.meter.peak_bytes(lambda: self._generator(column, network))
        parts = self._parts(network)
        with column.operators(), kept([*parameters, *network.buffers()]) as saved:
            parts[0]()
        held = saved.bytes
        saved.storages.clear()
        parts[1]()
        network.zero_grad(set_to_none=True)
        data: Data = {
            "forward": asdict(summarise(list(forward))),
            "backward": asdict(summarise(list(backward))),
            "total": asdict(summarise([sum(pair) for pair in taken])),
            "weight_bytes": sum(p.numel() * p.element_size() for p in parameters),
            "peak_bytes_above_weights": peak,
            "saved_activation_bytes": held,
            "classes": None,
        }
        if not column.compiled:  # its fused operators do not reach the dispatcher
            data["classes"] = by_class(
                lambda: self._generator(column, network), self.meter, self.rates
            )
        return data

    # ------------------------------------------------------------------------------------ the step

    def steps(self, repetitions: int) -> tuple[dict[str, Data], Data]:
        """The whole iteration by column, and that of ours by phase; everything in turns."""
        whole: dict[str, list[float]] = {n: [] for n, c in self.columns.items() if not c.compiled}
        ours, r1 = self.trainers["ours"], self.settings.r1
        with_r1: list[float] = []
        phases: list[Phases] = []
        r1_phases: list[Phases] = []
        for _ in range(repetitions):
            for name, taken in whole.items():
                with self.columns[name].operators():
                    taken += self.meter.time(self.trainers[name].iterate)
            phases.append(phases_of(ours.stamped(r1=False)))
            if r1.lazy_interval:
                with_r1 += self.meter.time(lambda: ours.iterate(r1=True))
                r1_phases.append(phases_of(ours.stamped(r1=True)))
        data: dict[str, Data] = {}
        for name, taken in whole.items():
            with self.columns[name].operators():
                peak = self.meter.peak_bytes(self.trainers[name].iterate)
            data[name] = {"time": asdict(summarise(taken)), "peak_bytes_above_standing": peak}
        return data, phase_table(whole["ours"], phases, with_r1, r1_phases, r1.interval)

    def step_classes(self, trace: Path) -> Data:
        """One iteration of ours without R1 by class of operator; writes its trace."""
        trainer = self.trainers["ours"]
        with trainer.ranges():
            return by_class(trainer.iterate, self.meter, self.rates, trace)
