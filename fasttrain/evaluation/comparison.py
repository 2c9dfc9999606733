"""Compare generated images with one reference, by one protocol: the only code path for a run during
training, a run at its end, and a model from a file.

    comparison = Comparison(reference=..., load=..., seeds=range(50_000), metrics=["fd"], ...)
    estimates = comparison(sampler, network)          # {"fd": Estimate(value, low, high), ...}
    comparison.protocol()                             # everything that the metrics depend on

Images are generated and processed in batches of consecutive numbers, which do not depend on the
number of processes; the metrics are functions of their features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from fasttrain.evaluation.collect import KEPT, Collected, collect, parts_of
from fasttrain.evaluation.extractors import Extractor
from fasttrain.evaluation.metrics.distances import evaluate_features, leading_components
from fasttrain.evaluation.metrics.neighbours import precision_recall
from fasttrain.evaluation.metrics.resampling import (
    Estimate,
    frechet_estimate,
    kernel_estimate,
    share_estimate,
)
from fasttrain.evaluation.metrics.statistics import Statistics
from fasttrain.evaluation.protocol import PAIRED, balanced, protocol_of
from fasttrain.evaluation.reference import ImageSet, Known
from fasttrain.evaluation.watch import Phase, unwatched
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.processes import World

__all__ = ["Comparison"]

T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Comparison:
    """The reference, the metrics and the method of a comparison.

    Attributes:
        reference: real images, or statistics of them.
        load: loads the extractor, at its first use.
        seeds: of the generated images.
        metrics: names of `METRICS`.
        components: leading principal components that `fd` uses; None: all dimensions.
        classes: of the model, in turn by seed.
        batch: images that are generated and processed at once.
        whole: compute the metrics from all images' features, without intervals, on rank 0, which
            alone reads the reference: for a few thousand images, many times. Otherwise from mean
            and covariance where those suffice, with intervals, divided over the processes.
    """

    reference: ImageSet | Known
    load: Callable[[], Extractor]
    seeds: Sequence[int] = ()
    metrics: Sequence[str] = ()
    components: int | None = None
    classes: int = 0
    batch: int
    world: World
    whole: bool = False
    phase: Phase = unwatched

    @property
    def readers(self) -> World:
        """The processes that read the reference and compare."""
        return World(0, 1, self.world.device) if self.whole else self.world

    @cached_property
    def extractor(self) -> Extractor:
        return self.load().to(self.world.device)

    @cached_property
    def real(self) -> Collected:
        """Statistics and features of the reference, on the processes that read it."""
        return self.known(self.reference)

    def known(
        self, images: ImageSet | Known, title: str = "reference images", classify: bool = False
    ) -> Collected:
        """Statistics and features of real images."""
        if isinstance(images, Known):
            return Collected(images.statistics.to(self.world.device), None, None)
        parts = parts_of(images.count, self.batch, self.readers)
        advance = self.phase(title, sum(map(len, parts)))
        keep = KEPT if set(self.metrics) & set(PAIRED) else 0
        batches, readers = images.batches(parts), self.readers
        collected = self._collect(batches, images.count, keep, readers, classify, advance)
        images.seal(self.readers)
        return collected

    def __call__(
        self,
        sampler: Sampler,
        network: Any,
        *,
        title: str = "generated images",
        seen: Callable[[Sequence[int], Tensor], None] = lambda seeds, images: None,
    ) -> dict[str, Estimate]:
        """The metrics of the images that a network generates, the same on every process.

        seen: called with the seeds and images of each batch of this process.
        """
        self._where_read(lambda: self.real and None)  # report errors of the reference first
        parts = parts_of(len(self.seeds), self.batch, self.world)

        def images() -> Iterator[tuple[range, Tensor]]:
            for part in parts:
                own = self.seeds[part.start : part.stop]
                made = generate(sampler, network, own, batch=len(own))
                seen(own, made)
                yield part, made

        advance = self.phase(title, sum(map(len, parts)))
        classify = "is" in self.metrics
        fake = self._collect(images(), len(self.seeds), KEPT, self.world, classify, advance)
        return self._where_read(lambda: self.numbers(fake))

    def numbers(self, fake: Collected) -> dict[str, Estimate]:
        """The metrics of images from their statistics and features."""
        if self.whole:
            assert self.real.features is not None
            assert fake.features is not None
            pair = self.real.features, fake.features
            values = evaluate_features(*pair, self.components) | precision_recall(*pair)
            found = {name: Estimate(value) for name, value in values.items()}
        else:
            found = estimates(
                self.real, fake, self.metrics, self.components, self.world, self.phase
            )
        if fake.score is not None:
            found["is"] = fake.score
        return {name: found[name] for name in self.metrics}

    def protocol(self) -> dict[str, Any]:
        """Everything that the metrics depend on besides the model."""
        return protocol_of(
            self.extractor.protocol,
            self.reference.protocol,
            images=len(self.seeds),
            components=self.components,
            balanced=balanced(self.seeds, self.classes),
        )

    def _where_read(self, work: Callable[[], T]) -> T:
        """The result of `work`, on every process."""
        return self.world.on_main(work) if self.whole else work()

    def _collect(
        self,
        batches: Iterable[tuple[range, Tensor]],
        count: int,
        keep: int,
        world: World,
        classify: bool,
        advance: Callable[[int], None],
    ) -> Collected:
        with world.agreed():
            extractor = self.extractor
        return collect(
            batches,
            extractor,
            count=count,
            keep=count if self.whole else keep,
            world=world,
            moments=not self.whole,
            classify=classify,
            advance=advance,
        )


def estimates(
    real: Collected,
    fake: Collected,
    metrics: Sequence[str],
    components: int | None,
    world: World,
    phase: Phase,
) -> dict[str, Estimate]:
    """The requested metrics, with intervals, the same on every process."""
    values: dict[str, Estimate] = {}
    for name, part in (("fd", components), ("fd_full", None)):
        if name in metrics:
            phase(name)
            values[name] = frechet(real, fake, part, world)
    if real.features is None or fake.features is None:
        return values
    ours, theirs = fake.features.to(world.device), real.features.to(world.device)
    if "kd" in metrics:
        phase("kd")
        values["kd"] = kernel_estimate(theirs, ours, world)
    if {"precision", "recall"} & set(metrics):
        rows = (len(theirs) + 2 * len(ours)) // world.size
        advance = phase("precision and recall", rows)
        shares = precision_recall(theirs, ours, world=world, advance=advance)
        values["precision"] = share_estimate(shares["precision"], len(ours))
        values["recall"] = Estimate(shares["recall"], why="not defined for recall")
    return values


def frechet(real: Collected, fake: Collected, components: int | None, world: World) -> Estimate:
    """The Frechet distance, on the reference's leading components, or all dimensions if None."""
    assert real.statistics is not None
    assert fake.statistics is not None
    reference, made, features = real.statistics, fake.statistics, fake.complete
    if components is not None:
        axes = leading_components(reference.sigma, components)
        reference, made = projected(reference, axes), projected(made, axes)
        features = None if features is None else features.to(axes) @ axes
    return frechet_estimate(reference, made, features, world)


def projected(statistics: Statistics, axes: Tensor) -> Statistics:
    mu, sigma = statistics.mu @ axes, axes.T @ statistics.sigma @ axes
    return Statistics(mu, (sigma + sigma.T) / 2, statistics.images)
