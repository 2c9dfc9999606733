"""The reference of a comparison: real images, or statistics of them in a file.

    images = open_images("data/photos")              # a shard set, a folder, an archive, `digits`
    for part, pixels in images.batches(parts): ...   # [n, C, H, W] in [-1, 1]

    known = known_statistics(Path("ref.npz"), extractor)

A file of ours records its extractor and images, and is refused for other extractors. EDM's files do
not: their statistics are of Inception features, by EDM's own tools.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fasttrain.data import RealImages, Storage, open_storage
from fasttrain.evaluation.extractors import Extractor
from fasttrain.evaluation.metrics.statistics import Statistics, load_statistics
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from fasttrain_data import DataError
from fasttrain_data.fetching import is_url
from fasttrain_data.images import BadImage, Wanted
from fasttrain_data.sources import Source, open_source
from fasttrain_data.sources.place import Place

__all__ = ["Head", "ImageSet", "Known", "is_statistics", "known_statistics", "open_images"]

Pixels = npt.NDArray[np.uint8]
DIGITS = 12
"""Digits of a hash that identifies a reference."""
UNKNOWN = dict.fromkeys(("data", "images", "size", "resized", "content"))


class ImageSet(ABC):
    """Real images of one size, in a fixed order.

    Attributes:
        count, size: number of images, and pixels a side.
        protocol: {"data": a name for people, "images", "size", "resized": whether they had another
            size, "content": a hash}.
        shares: of each class in them; empty where they are not known.
    """

    count: int
    size: int
    protocol: dict[str, Any]
    shares: Sequence[float] = ()

    @abstractmethod
    def read(self, numbers: range) -> Iterator[Pixels]:
        """Images uint8 [H, W, C] with consecutive numbers. Raises DataError."""

    def batches(self, parts: Iterable[range]) -> Iterator[tuple[range, Tensor]]:
        """Each part, of consecutive numbers, with its images [n, C, H, W] in [-1, 1]."""
        parts = list(parts)
        if not parts:
            return
        pixels = self.read(range(parts[0].start, parts[-1].stop))
        for part in parts:
            batch = np.stack([next(pixels) for _ in part]).transpose(0, 3, 1, 2)
            yield part, torch.from_numpy(np.ascontiguousarray(batch)).float().div_(127.5).sub_(1)

    @abstractmethod
    def seal(self, world: World) -> None:
        """Complete the protocol's `content` after all processes have read their images, if it is
        only known then."""

    def _describe(self, name: str, content: str, resized: bool) -> None:
        self.protocol = {
            "data": name,
            "images": self.count,
            "size": self.size,
            "resized": resized,
            "content": content[:DIGITS],
        }


@dataclass(frozen=True)
class Known:
    """Statistics of images that are not available, and the `protocol` of their `ImageSet`, with
    None for unknown values."""

    statistics: Statistics
    protocol: dict[str, Any]


class Shards(ImageSet):
    """A shard set, in the order of its index; of a mixture a sample with its weights. A process
    opens only the shards of its own images."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.index = storage, storage.index()
        self.index.check_images(storage)
        storage.check(self.index)
        self.chosen, self.shares = storage.sample(self.index), storage.class_shares(self.index)
        self.count, self.size = int(self.chosen.sum()), self.index.resolution
        name = str(storage).rstrip("/").rpartition("/")[2]
        self._describe(name, self.index.content_sha256, resized=False)

    def read(self, numbers: range) -> Iterator[Pixels]:
        first = 0
        ends = np.cumsum([shard.images for shard in self.index.shards])
        for shard, chosen in zip(self.index.shards, np.split(self.chosen, ends[:-1]), strict=True):
            last = first + int(chosen.sum())
            if first < numbers.stop and last > numbers.start:
                images = self.storage.images(shard, self.index)
                own = (pixels for pixels, kept in zip(images, chosen, strict=False) if kept)
                for number, pixels in enumerate(own, first):
                    if number in numbers:
                        yield pixels
            first = last

    def seal(self, world: World) -> None:
        """Nothing to do: the index has the hash."""


class Head(ImageSet):
    """The next `count` images of a data set as `RealImages` has them, a sample of it; different
    ones at each reading. Unreadable images are skipped."""

    def __init__(self, images: RealImages, count: int) -> None:
        self.images, self.count, self.size = images, count, images.index.resolution
        name = str(images.stream.storage).rstrip("/").rpartition("/")[2]
        self._describe(name, images.index.content_sha256, resized=False)
        self.shares = images.stream.storage.class_shares(images.index)
        order = images.stream.order
        self.protocol["content"] += f", {order.choice} with seed {order.seed}"

    def read(self, numbers: range) -> Iterator[Pixels]:
        for _ in numbers:
            yield self.images.take(1).images[0].permute(1, 2, 0).numpy()

    def seal(self, world: World) -> None:
        """Nothing to do: the index has the hash."""
        if self.images.stream.skipped:
            warnings.warn(
                f"{self.images.stream.skipped} images of the data set cannot be read: compare "
                "distances only with those without the same images",
                stacklevel=2,
            )


class Files(ImageSet):
    """Every other source of `fasttrain-data convert`: a folder, an archive, a published set.

    Its content is a hash of the pixels, because names and sizes of files may stay when an image
    changes.
    """

    def __init__(self, source: Source, name: str, resolution: int | None) -> None:
        def bad(file: str, why: str) -> None:
            raise DataError(f"{file}: {why}: remove it, a reference must be complete")

        layout = source.layout(resolution, None, bad, quietly)
        self.source, self.items = source, layout.items
        self.count, self.size = len(layout.items), layout.resolution
        labels = np.asarray(source.labels)[np.asarray(layout.items)]
        self.shares = list(np.bincount(labels, minlength=len(source.classes)) / self.count)
        self.wanted = Wanted(channels=layout.channels, resolution=layout.resolution)
        self.digests: list[bytes] = []
        self._describe(name, "", resized=resolution is not None and resolution != own_size(source))

    def read(self, numbers: range) -> Iterator[Pixels]:
        self.digests = []
        for number in numbers:
            item = self.items[number]
            try:
                pixels = self.source.read(item, self.wanted)
            except BadImage as error:
                raise DataError(f"{self.source.name(item)}: {error}: fix or remove it") from error
            self.digests.append(hashlib.sha256(pixels.tobytes()).digest())
            yield pixels

    def seal(self, world: World) -> None:
        digest = hashlib.sha256(f"channels {self.wanted.channels}".encode())
        for share in world.gather(b"".join(self.digests)):  # consecutive parts, in order
            digest.update(share)
        self.protocol["content"] = digest.hexdigest()[:DIGITS]


def quietly(done: int, total: int) -> None:
    """Progress function that prints nothing."""


def own_size(source: Source) -> int | None:
    """Pixels a side of a source's images; None when they differ, or are not square."""
    try:
        return source.layout(None, None, lambda file, why: None, quietly).resolution
    except DataError:
        return None


def open_images(
    data: str | Path | Storage, resolution: int | None = None, split: str | None = None
) -> ImageSet:
    """The images that a user named.

    resolution: pixels a side to resize them to, with a centred square and Lanczos, as
        `fasttrain-data convert` does; None keeps their size.

    Raises DataError when there are none, or when they have several sizes.
    """
    if isinstance(data, Storage) or is_url(data) or Place.of(str(data)).has_shards:
        shards = Shards(data if isinstance(data, Storage) else open_storage(data))
        if resolution in (None, shards.size):
            return shards
        if isinstance(data, Storage) or is_url(data):
            raise UserError(f"{data} is not resized: remove --resolution, or convert it")
    return Files(open_source(data, split=split), Path(data).resolve().name, resolution)


def is_statistics(data: str | Path) -> bool:
    """Whether a reference is a file of statistics, by its name."""
    return not is_url(data) and Path(data).suffix == ".npz"


def known_statistics(path: Path, extractor: Extractor) -> Known:
    """The statistics in a file. Raises UserError unless they are of this extractor's features."""
    statistics = load_statistics(path)
    name, width = extractor.protocol["extractor"], len(statistics.mu)
    if statistics.protocol:
        theirs, ours = statistics.protocol.get("extractor"), extractor.protocol
        if theirs != ours:
            raise UserError(
                f"{path} has other features ({_said(theirs)}) than the requested ones "
                f"({_said(ours)}): write it again with `fasttrain reference-stats`, or choose its "
                f"extractor"
            )
        reference = statistics.protocol.get("reference")
        if not isinstance(reference, dict) or set(reference) != set(UNKNOWN):
            raise UserError(f"{path} does not record its images: write it again")
        return Known(statistics, reference)
    if not extractor.unnamed_statistics or width != extractor.width:
        hint = ": choose the extractor inception" if width == 2048 else ""
        raise UserError(
            f"{path} holds {width} features an image and does not record which; only Inception's "
            f"2048 are accepted without that, and the extractor is {name}{hint}"
        )
    content = hashlib.sha256(statistics.mu.numpy().tobytes() + statistics.sigma.numpy().tobytes())
    about = {"data": path.name, "content": content.hexdigest()[:DIGITS]}
    return Known(statistics, {**UNKNOWN, **about})


def _said(protocol: Any) -> str:
    if not isinstance(protocol, dict):
        return "unknown"
    return ", ".join(f"{key} {value}" for key, value in protocol.items())
