"""A look at a folder or set of images before anything is made of it: how many, of what sizes,
channels and classes, and which of them cannot be read.

    survey = look_at("photos")
    print("\n".join(survey.lines()))
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fasttrain_data.errors import DataError, shown
from fasttrain_data.images import BadImage, Wanted, read_header
from fasttrain_data.index import load_index
from fasttrain_data.sources import open_source
from fasttrain_data.sources.base import ArraySource, EncodedSource, Source
from fasttrain_data.sources.place import Place
from fasttrain_data.summary import passed_over

__all__ = ["Survey", "look_at"]

HEADERS, DECODED = 20_000, 200
"""Largest numbers of images whose header is read, and that are decoded, evenly spread."""
NAMED = 5
"""Classes and unreadable files that are shown."""

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Survey:
    """What a place holds.

    Attributes:
        looked: number of images that were looked at.
        sides: the shorter side of each of these, sorted; widths and heights of the extremes.
        channels: 1 when all of these are grey, else 3.
        classes: name -> number of images, in label order.
        unreadable: name and reason of each of these that cannot be read.
        shards: whether it is a shard set that training reads as it is.
        several: number of files, of those looked at, with more pictures than the first, which is
            the one that is taken.
        passed_over: files that are no images by their names, by ending.
        notes: lines that a user should see, which a conversion has again.
    """

    place: str
    images: int
    looked: int
    sides: tuple[int, ...]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    channels: int
    classes: dict[str, int]
    unreadable: tuple[tuple[str, str], ...] = ()
    shards: bool = False
    several: int = 0
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def square(self) -> int | None:
        """The size that all images have, where all are squares of one size."""
        width, height = self.smallest
        return width if self.smallest == self.largest and width == height else None

    def side(self, share: float) -> int:
        """The shorter side that this share of the images does not reach."""
        return self.sides[min(int(share * len(self.sides)), len(self.sides) - 1)]

    def lines(self) -> list[str]:
        """For people."""
        counts = sorted(self.classes.items(), key=lambda item: -item[1])
        some = ", ".join(f"{shown(name)} {count:,}" for name, count in counts[:NAMED])
        more = ", ..." if len(counts) > NAMED else ""
        number = "1 class" if len(counts) == 1 else f"{len(counts):,} classes: {some}{more}"
        colour = "grey" if self.channels == 1 else "colour"
        whole = "" if self.looked == self.images else f" (of {self.looked:,} that were looked at)"
        sizes = "x".join(map(str, self.smallest))
        if self.smallest != self.largest:
            middle = self.side(0.5)
            sizes += f" to {'x'.join(map(str, self.largest))}, shorter side {middle} in the middle"
        lines = [f"{self.images:,} images, {number}", f"{sizes}, {colour}{whole}"]
        if self.several:
            lines.append(f"{self.several:,} have several pictures: the first of each is taken")
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} of {self.looked:,} cannot be read:")
            lines += [f"  {shown(name)}: {why}" for name, why in self.unreadable[:NAMED]]
            if len(self.unreadable) > NAMED:
                lines.append(f"  and {len(self.unreadable) - NAMED:,} more")
        return [*lines, *passed_over(self.passed_over)]


def look_at(place: str | Path, progress: Advance = lambda *_: None) -> Survey:
    """Look at a shard set's index, or at the headers of images and at some of their pixels.

    Raises DataError when there are no images that can be read.
    """
    if Place.of(str(place)).has_shards:
        index = load_index(Path(place))
        size = (index.resolution, index.resolution)
        classes = {info.name: info.images for info in index.classes}
        sides, grey = (index.resolution,), index.channels
        return Survey(
            str(place), index.images, index.images, sides, size, size, grey, classes, shards=True
        )
    source = open_source(place)
    counts = Counter(int(label) for label in source.labels)
    classes = {name: counts[label] for label, name in enumerate(source.classes)}
    if isinstance(source, ArraySource):
        height, width, channels = source.shape
        size = (width, height)
        sides = (min(size),)
        return Survey(str(place), len(source), len(source), sides, size, size, channels, classes)
    return _of_files(str(place), source, classes, progress)


def _of_files(place: str, source: Source, classes: dict[str, int], progress: Advance) -> Survey:
    """Of image files, by their headers; a damaged end shows when they are decoded."""
    sizes: list[tuple[int, int]] = []
    unreadable: list[tuple[str, str]] = []
    grey, several = True, 0
    items = _spread(len(source), HEADERS)
    decoded = set(_spread(len(items), DECODED))
    for number, item in enumerate(items):
        progress("looking at images", number, len(items))
        try:
            if isinstance(source, EncodedSource):
                with source.open(item) as file:
                    width, height, is_grey, more = read_header(file)
                    several += more
                    if number in decoded:
                        file.seek(0, os.SEEK_SET)
                        source.read(item, Wanted(channels=3))
            else:
                pixels = source.read(item, Wanted(channels=3))
                height, width, is_grey = (*pixels.shape[:2], bool(np.ptp(pixels, 2).max() == 0))
        except BadImage as error:
            unreadable.append((source.member(item), str(error)))
            continue
        sizes.append((width, height))
        grey = grey and is_grey
    if not sizes:
        raise DataError(f"no readable images in {place}: {': '.join(unreadable[0])}")
    sizes.sort(key=min)
    largest = max(sizes, key=lambda size: size[0] * size[1])
    smallest = min(sizes, key=lambda size: size[0] * size[1])
    return Survey(
        place,
        len(source),
        len(items),
        tuple(map(min, sizes)),
        smallest,
        largest,
        1 if grey else 3,
        classes,
        tuple(unreadable),
        several=several,
        passed_over=source.passed_over,
        notes=tuple(source.notes),
    )


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]
