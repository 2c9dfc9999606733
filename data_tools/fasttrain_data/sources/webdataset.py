"""WebDataset shards as other tools write them: a tar or a folder of tars, with `KEY.jpg` beside
`KEY.cls`."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from fasttrain_data.errors import DataError, shown
from fasttrain_data.images import BadImage
from fasttrain_data.samples import Fields, Samples, holds_samples, read_samples
from fasttrain_data.sources.base import (
    EncodedSource,
    Span,
    allow_files,
    listing_hash,
    read_span,
    times,
)
from fasttrain_data.sources.labels import Labels
from fasttrain_data.sources.names import by_ending
from fasttrain_data.sources.place import Place, tars_in

__all__ = ["WebDatasetSource"]


class WebDatasetSource(EncodedSource):
    """Samples in the order of the tars and of their images in them.

    Raises DataError when labels cannot be told, or a sample has several images.
    """

    options = frozenset({"fields"})

    @classmethod
    def opened(cls, place: Place) -> WebDatasetSource | None:
        """Of tars where an image has a label or a text of its name beside it, or the user names
        fields."""
        tars = place.tars()
        if not tars or (place.fields == Fields() and not any(map(_holds_samples, tars))):
            return None
        return cls(place.path, place.fields)

    def __init__(self, path: Path, fields: Fields) -> None:
        self.title, self._paths = str(path), tars_in(path)
        allow_files(len(self._paths))
        self._files = [tar.open("rb") for tar in self._paths]
        self._tar, self._offsets, self._sizes = array("i"), array("q"), array("q")
        self._names: list[str] = []
        self._irregular: dict[int, str] = {}
        labels, each = Labels(self.title, fields), list[tuple[str, Samples]]()
        passed_over = Counter[str]()
        if path.is_dir():
            passed_over += by_ending(e.name for e in path.iterdir() if e not in self._paths)
        for number, (tar, file) in enumerate(zip(self._paths, self._files, strict=True)):
            samples = read_samples(file, tar.stat().st_size, str(tar), fields)
            labels.add(str(tar), samples)
            first = len(self._names)
            self._irregular |= {first + row: why for row, why in samples.irregular.items()}
            self._tar.extend([number] * len(samples))
            self._offsets.extend(samples.offsets)
            self._sizes.extend(samples.sizes)
            self._names += samples.names
            passed_over += samples.others
            each.append((str(tar), samples))
        self.passed_over = passed_over
        if not self._names:
            raise DataError(f"no images in {path}: looked for members such as KEY.jpg")
        self.classes, self.notes = labels.classes(), labels.notes
        numbers = [labels.numbers(samples, tar) for tar, samples in each]
        self.labels = np.concatenate(numbers).astype(np.int64)
        self.identity = {
            "kind": "webdataset",
            "name": shown(path.name),
            "files": len(self._names),
            "listing_sha256": listing_hash(zip(self._names, self._sizes, strict=True)),
        }

    def state(self) -> str:
        return times(self._paths)

    def member(self, item: int) -> str:
        tar = self._paths[self._tar[item]].name
        return f"{tar}/{self._names[item]}" if len(self._paths) > 1 else self._names[item]

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        why = self._irregular.get(item)
        if why is not None:
            raise BadImage(why)
        span = Span(self._offsets[item], self._sizes[item])
        yield read_span(self._files[self._tar[item]].fileno(), span)


def _holds_samples(tar: Path) -> bool:
    with tar.open("rb") as file:
        return holds_samples(file, tar.stat().st_size, str(tar))
