"""Distances between a run's images and its own data, always at equal numbers of images and beside
the distance between two sets of real images, the baseline.

    evaluator = Evaluator(settings, world)
    evaluator(sampler, network)       # fd, fd_full, kd, precision, recall, each an Estimate
    evaluator.real_floor()
    evaluator.protocol()              # everything that the metrics depend on
"""

from __future__ import annotations

from functools import cached_property, partial

from fasttrain.data import RealImages
from fasttrain.evaluation.collect import Collected
from fasttrain.evaluation.comparison import Comparison
from fasttrain.evaluation.extractors import check_extractor, extractor_class, load_extractor
from fasttrain.evaluation.metrics.neighbours import NEIGHBOURS
from fasttrain.evaluation.metrics.resampling import Estimate
from fasttrain.evaluation.protocol import METRICS
from fasttrain.evaluation.reference import Head
from fasttrain.evaluation.watch import Phase, unwatched
from fasttrain.settings import RunSettings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import ONE_PROCESS, World

__all__ = ["USUAL", "Evaluator"]

USUAL = 10_000
"""Most images that are compared unless more are asked for: kernel distance, precision and recall
compare all pairs, on the CPU of rank 0, while the others wait."""


class Evaluator(Comparison):
    """Distances to the run's own data set, in the loop and at its end.

    The reference is N images of the data set, a sample of it (`RealImages`), the real floor N
    others; generated images have the seeds 0..N-1 and the classes in turn. N is `evaluate.samples`,
    or half of the data set up to `USUAL`.

    batch: images in a batch; default: `evaluate.batch`.
    trust_urls: see `storage_of`.
    """

    def __init__(
        self,
        settings: RunSettings,
        world: World = ONE_PROCESS,
        batch: int | None = None,
        phase: Phase = unwatched,
        *,
        trust_urls: bool = True,
    ) -> None:
        wanted = settings.evaluate
        check_extractor(wanted.extractor, wanted.weights)
        kind = extractor_class(wanted.extractor)
        images = RealImages.of_run(settings, trust_urls=trust_urls)
        total = images.stream.order.distinct(0)
        of = f"{total} images" + (" before one comes again" if settings.data.mix else "")
        half = total // 2
        samples = wanted.samples or min(half, USUAL)
        if samples > half:
            raise UserError(
                f"evaluate.samples={samples}: the data set has {of}, "
                f"which allows at most {half} (the real floor needs the same number)"
            )
        if samples <= NEIGHBOURS:
            raise UserError(
                f"evaluate.samples={samples}: set more, precision and recall use "
                f"{NEIGHBOURS} neighbours of each image"
            )
        if wanted.components is not None and samples <= wanted.components:
            raise UserError(
                f"{samples} images are evaluated, the data set has {of}: set "
                f"evaluate.components below that, it is {wanted.components}"
            )
        super().__init__(
            reference=Head(images, samples),
            load=partial(load_extractor, wanted.extractor, weights=wanted.weights),
            seeds=range(samples),
            metrics=[name for name in METRICS if name != "is" or kind.classes],
            components=wanted.components,
            classes=settings.network.label_dim,
            batch=batch or wanted.batch,
            world=world,
            whole=True,
            phase=phase,
        )

    @cached_property
    def floor(self) -> Collected:
        """Statistics and features of the images after the reference's."""
        _ = self.real
        return self.known(self.reference, "other real images", classify="is" in self.metrics)

    def real_floor(self) -> dict[str, Estimate]:
        """Distances of N other real images from the reference: those of a perfect generator."""
        return self.world.on_main(lambda: self.numbers(self.floor))
