"""What generated images are compared with: real images, or statistics of them in a file.

    images = open_images("data/photos")              # a shard set, a folder, an archive, `digits`
    for part, pixels in images.batches(parts): ...   # [n, C, H, W] in [-1, 1]

    known = known_statistics(Path("ref.npz"), extractor)

A file of ours says which extractor and images it is of, and is refused for others. One of EDM's
says nothing: its statistics are of Inception features, by EDM's own tools.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
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
from fasttrain_data import DataError, decode_record, read_records
from fasttrain_data.fetching import is_url
from fasttrain_data.images import BadImage, Wanted
from fasttrain_data.index import INDEX_NAME
from fasttrain_data.sources import Source, open_source

__all__ = ["Head", "ImageSet", "Known", "is_statistics", "known_statistics", "open_images"]

Pixels = npt.NDArray[np.uint8]
DIGITS = 12
"""Of a hash that tells one reference from another."""
UNKNOWN = dict.fromkeys(("data", "images", "size", "resized", "content"))


class ImageSet(ABC):
    """Real images of one size, in a fixed order.

    Attributes:
        count, size: how many, and pixels a side.
        protocol: {"data": a name for people, "images", "size", "resized": whether that is not the
            size that they had, "content": a hash}.
    """

    count: int
    size: int
    protocol: dict[str, Any]

    @abstractmethod
    def read(self, numbers: range) -> Iterator[Pixels]:
        """uint8 [H, W, C] of consecutive numbers. Raises DataError."""

    def batches(self, parts: Iterable[range]) -> Iterator[tuple[range, Tensor]]:
        """Each part, of consecutive ones, with its images [n, C, H, W] in [-1, 1]."""
        parts = list(parts)
        if not parts:
            return
        pixels = self.read(range(parts[0].start, parts[-1].stop))
        for part in parts:
            batch = np.stack([next(pixels) for _ in part]).transpose(0, 3, 1, 2)
            yield part, torch.from_numpy(np.ascontiguousarray(batch)).float().div_(127.5).sub_(1)

    @abstractmethod
    def seal(self, world: World) -> None:
        """After all processes have read their shares: complete the protocol's `content`, where
        only reading tells."""

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
    """Statistics of images that are not at hand, and the `protocol` that their `ImageSet` had, with
    None for what is not known."""

    statistics: Statistics
    protocol: dict[str, Any]


class Shards(ImageSet):
    """A shard set, in the order of its index; a process opens only the shards of its own share."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.index = storage, storage.index()
        storage.check(self.index)
        self.count, self.size = self.index.images, self.index.resolution
        name = str(storage).rstrip("/").rpartition("/")[2]
        self._describe(name, self.index.content_sha256, resized=False)

    def read(self, numbers: range) -> Iterator[Pixels]:
        first = 0
        for shard in self.index.shards:
            last = first + shard.images
            if first < numbers.stop and last > numbers.start:
                name = self.storage.name(shard)
                with self.storage.open(shard) as file:
                    records = read_records(file, self.index, name=name)
                    for number, record in enumerate(records, first):
                        if number in numbers:
                            yield decode_record(record, self.index, name=name)
            first = last

    def seal(self, world: World) -> None:
        """The index has told it."""


class Head(ImageSet):
    """The next `count` images of a data set in its seeded order, others each time that they are
    read; images that cannot be read are passed over."""

    def __init__(self, images: RealImages, count: int) -> None:
        self.images, self.count, self.size = images, count, images.index.resolution
        name = str(images.stream.storage).rstrip("/").rpartition("/")[2]
        self._describe(name, images.index.content_sha256, resized=False)
        self.protocol["content"] += ", the first of its order with seed 0"

    def read(self, numbers: range) -> Iterator[Pixels]:
        for _ in numbers:
            yield self.images.take(1).images[0].permute(1, 2, 0).numpy()

    def seal(self, world: World) -> None:
        """The index has told it."""
        if self.images.stream.skipped:
            warnings.warn(
                f"{self.images.stream.skipped} images of the data set cannot be read: distances "
                "compare only with those taken without the same ones",
                stacklevel=2,
            )


class Files(ImageSet):
    """Whatever else `fasttrain-data convert` takes: a folder, an archive, a published set.

    Its content is a hash of the pixels as they are read, for names and sizes of files stay when an
    image is made anew.
    """

    def __init__(self, source: Source, name: str, resolution: int | None) -> None:
        def bad(file: str, why: str) -> None:
            raise DataError(f"{file}: {why}: remove it, a reference must be whole")

        layout = source.layout(resolution, None, bad, quietly)
        self.source, self.items = source, layout.items
        self.count, self.size = len(layout.items), layout.resolution
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
                raise DataError(f"{self.source.name(item)}: {error}: mend or remove it") from error
            self.digests.append(hashlib.sha256(pixels.tobytes()).digest())
            yield pixels

    def seal(self, world: World) -> None:
        digest = hashlib.sha256(f"channels {self.wanted.channels}".encode())
        for share in world.gather(b"".join(self.digests)):  # consecutive ones, in order
            digest.update(share)
        self.protocol["content"] = digest.hexdigest()[:DIGITS]


def quietly(done: int, total: int) -> None:
    """For progress that nobody watches."""


def own_size(source: Source) -> int | None:
    """Pixels a side of a source's images; None when they are not all alike, or not square."""
    try:
        return source.layout(None, None, lambda file, why: None, quietly).resolution
    except DataError:
        return None


def open_images(
    data: str | Path | Storage, resolution: int | None = None, split: str = "train"
) -> ImageSet:
    """The images that a user named.

    resolution: pixels a side that they are made, by a centred square and Lanczos, as
        `fasttrain-data convert` does; they keep their size without.

    Raises DataError when there are none, or when they have several sizes.
    """
    if isinstance(data, Storage) or is_url(data) or (Path(data) / INDEX_NAME).is_file():
        shards = Shards(data if isinstance(data, Storage) else open_storage(data))
        if resolution in (None, shards.size):
            return shards
        if isinstance(data, Storage) or is_url(data):
            raise UserError(f"{data} is read as it is: leave --resolution out, or convert it")
    return Files(open_source(data, split=split), Path(data).resolve().name, resolution)


def is_statistics(data: str | Path) -> bool:
    """Whether a reference is a file of statistics, by its name."""
    return not is_url(data) and Path(data).suffix == ".npz"


def known_statistics(path: Path, extractor: Extractor) -> Known:
    """The statistics in a file, which must be of this extractor's features; UserError if not."""
    found = load_statistics(path)
    name, width = extractor.protocol["extractor"], len(found.mu)
    if found.protocol:
        theirs, ours = found.protocol.get("extractor"), extractor.protocol
        if theirs != ours:
            raise UserError(
                f"{path} is of other features ({_said(theirs)}) than those asked for "
                f"({_said(ours)}): make it again with `fasttrain reference-stats`, or choose its "
                f"--extractor"
            )
        reference = found.protocol.get("reference")
        if not isinstance(reference, dict) or set(reference) != set(UNKNOWN):
            raise UserError(f"{path} does not say what images it is of: make it again")
        return Known(found, reference)
    if name != "inception" or width != extractor.width:
        hint = ": choose --extractor inception" if width == 2048 else ""
        raise UserError(
            f"{path} holds {width} features an image and does not say which; only Inception's 2048 "
            f"are taken without that, and the extractor is {name}{hint}"
        )
    content = hashlib.sha256(found.mu.numpy().tobytes() + found.sigma.numpy().tobytes())
    about = {"data": path.name, "content": content.hexdigest()[:DIGITS]}
    return Known(found, {**UNKNOWN, **about})


def _said(protocol: Any) -> str:
    if not isinstance(protocol, dict):
        return "unknown"
    return ", ".join(f"{key} {value}" for key, value in protocol.items())
