"""How far generated images are from real ones, always at equal N and beside the distance between
two sets of real images, so that the number means something.

    evaluator = Evaluator(settings, world)
    evaluator(one_step, network)       # {"fd", "fd_full", "kd", "precision", "recall"}
    evaluator.real_floor()
    evaluator.protocol()               # what these numbers depend on
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from typing import Any

import torch

from fasttrain.data import ImageStream, storage_of
from fasttrain.distributed import ONE_PROCESS, World
from fasttrain.errors import UserError
from fasttrain.evaluation.class_scores import ClassScores
from fasttrain.evaluation.collect import parts_of
from fasttrain.evaluation.distances import evaluate_features
from fasttrain.evaluation.extractors import Extractor, check_extractor, extract, load_extractor
from fasttrain.evaluation.neighbours import NEIGHBOURS, precision_recall
from fasttrain.evaluation.protocol import protocol_of
from fasttrain.generation import Sampler, generate
from fasttrain.settings import RunSettings

__all__ = ["Evaluator"]


class Evaluator:
    """Distances to the run's own data set.

    The reference is the first N images of the data set's seeded order, the real floor the N after
    them, generated images have the seeds 0..N-1 and the classes in turn. N is `evaluate.samples`,
    or half of the data set.

    Every process makes its share of the images, in the same batches as one process would, and so
    the same numbers come out. Rank 0 reads the real ones and compares.
    """

    def __init__(
        self, settings: RunSettings, world: World = ONE_PROCESS, *, trust_urls: bool = True
    ) -> None:
        self.settings = settings.evaluate
        check_extractor(self.settings.extractor, self.settings.weights)
        self.world, self.device = world, world.device
        self.stream = ImageStream(
            storage_of(settings.data, trust_urls=trust_urls),
            batch=1,
            streams=1,
            seed=0,
            max_skipped=settings.data.max_skipped,
            reader_timeout=settings.data.reader_timeout,
        )
        total = self.stream.manifest.images
        half = total // 2
        self.samples = self.settings.samples or half
        if self.samples > half:
            raise UserError(
                f"evaluate.samples={self.samples}: the data set has {total} images, "
                f"which allows at most {half} (as many again are needed for the real floor)"
            )
        if self.samples <= NEIGHBOURS:
            raise UserError(
                f"evaluate.samples={self.samples}: take more, precision and recall look at "
                f"{NEIGHBOURS} neighbours of each image"
            )
        if self.settings.components is not None and self.samples <= self.settings.components:
            raise UserError(
                f"{self.samples} images are evaluated, of {total} in the data set: set "
                f"evaluate.components below that, it is {self.settings.components}"
            )

    def __call__(self, sampler: Sampler, network: Any, **options: Any) -> dict[str, float]:
        """Distances of N images that the network makes, the same on every process; options go to
        the sampler."""
        parts = parts_of(self.samples, self.settings.batch, self.world)
        made = (generate(sampler, network, part, batch=len(part), **options) for part in parts)
        own = self.features(made) if parts else torch.zeros(0, self.extractor.width)
        features = self.world.rows(own)
        return self.world.on_main(lambda: self.distances(features))

    def real_floor(self) -> dict[str, float]:
        """Distances of N other real images from the reference: what a perfect generator gets."""
        return self.world.on_main(lambda: self.distances(self.floor))

    def distances(self, features: torch.Tensor) -> dict[str, float]:
        real = self.reference
        found = evaluate_features(real, features, self.settings.components)
        values = {name: found[name] for name in ("fd", "fd_full", "kd")}
        values |= precision_recall(real, features)
        if self.extractor.classes:
            scores = ClassScores(self.extractor.classes, len(features))
            for index in torch.arange(len(features)).split(self.settings.batch):
                logits = self.extractor.logits(features[index].to(self.device))
                scores.update(logits.cpu(), index)
            values["is"] = scores.estimate(ONE_PROCESS).value
        return values

    @torch.no_grad()
    def features(self, batches: Iterable[torch.Tensor]) -> torch.Tensor:
        """[N, F] float32 of batches of images [n, C, H, W] in [-1, 1]."""
        return extract(self.extractor, (images.to(self.device) for images in batches))

    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on besides the model."""
        manifest = self.stream.manifest
        reference = {
            "data": str(self.stream.storage).rstrip("/").rpartition("/")[2],
            "images": self.samples,
            "size": manifest.resolution,
            "resized": False,
            "content": f"{manifest.content_sha256[:12]}, the first of its order with seed 0",
        }
        return protocol_of(
            self.extractor.protocol,
            reference,
            images=self.samples,
            components=self.settings.components,
        )

    @cached_property
    def extractor(self) -> Extractor:
        found = load_extractor(self.settings.extractor, weights=self.settings.weights)
        return found.to(self.device)

    @cached_property
    def reference(self) -> torch.Tensor:
        """Features of the reference."""
        return self._read()

    @cached_property
    def floor(self) -> torch.Tensor:
        """Features of the real floor's images, which come after the reference."""
        _ = self.reference
        return self._read()

    def _read(self) -> torch.Tensor:
        """Features of the next N images of the data set."""
        sizes = map(len, parts_of(self.samples, self.settings.batch, ONE_PROCESS))
        found = self.features(
            torch.cat([batch.to("cpu").images for batch in islice(self.stream, size)])
            for size in sizes
        )
        if self.stream.skipped:
            warnings.warn(
                f"{self.stream.skipped} images of the data set cannot be read: distances compare "
                "only with those taken without the same ones",
                stacklevel=2,
            )
        return found
