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
from fasttrain_data.samples import Fields, Samples, read_samples
from fasttrain_data.sources.base import (
    EncodedSource,
    Span,
    allow_files,
    by_ending,
    listing_hash,
    read_span,
    times,
)
from fasttrain_data.sources.labels import Labels

__all__ = ["WebDatasetSource", "tars_in"]


def tars_in(path: Path) -> list[Path]:
    """The tars that a path names: itself, or those of a folder, sorted."""
    if not path.is_dir():
        return [path]
    # A FIFO would be waited for.
    tars = [file for file in path.glob("*.tar") if file.is_file()]
    return sorted(file for file in tars if not file.name.startswith("."))


class WebDatasetSource(EncodedSource):
    """Samples in the order of the tars and of their images in them.

    Raises DataError when labels cannot be told, or a sample has several images.
    """

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
        self.classes = labels.classes()
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
