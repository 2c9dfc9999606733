"""The work of a conversion: which items go to which shard, and how they become records.

task = Task(source, layout, options)
task.shards, task.fingerprint()
for key, pixels, label in task.items(0, bad=[], several=[]):
    ...
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL

from fasttrain_data.images import BadImage
from fasttrain_data.index import FORMAT_VERSION
from fasttrain_data.options import Options
from fasttrain_data.permutation import SHARD_WRITER, permutation
from fasttrain_data.shard_file import Item
from fasttrain_data.sources import Layout, Source
from fasttrain_data.writer import BadFile

__all__ = ["Task", "identity"]


def identity(source: Source) -> dict[str, Any]:
    """The source's own identity and that of its labels, which names and sizes of files do not
    show."""
    labels = hashlib.sha256(json.dumps(list(source.classes)).encode())
    labels.update(np.asarray(source.labels, "<i8").tobytes())
    return {**source.identity, "labels_sha256": labels.hexdigest()}


class Task:
    """Which items go to which shard, and how they become records."""

    def __init__(self, source: Source, layout: Layout, options: Options) -> None:
        self.source, self.layout, self.options = source, layout, options
        self.wanted = options.wanted(layout.channels)
        self.order = permutation(len(layout.items), SHARD_WRITER, options.seed)
        assert options.images_per_shard is not None
        self.shards = -(-len(self.order) // options.images_per_shard)
        each, more = divmod(len(self.order), max(1, self.shards))
        self.starts = [n * each + min(n, more) for n in range(self.shards + 1)]

    def fingerprint(self) -> str:
        """Of all that decides the bytes: what was half done is taken up for the same only."""
        what = {
            "format": FORMAT_VERSION,
            "pillow": PIL.__version__,
            "source": identity(self.source),
            "state": self.source.state(),
            "options": self.options.recorded(),
            "layout": [self.layout.resolution, self.layout.channels, len(self.layout.items)],
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def items(self, number: int, bad: list[BadFile], several: list[str]) -> Iterator[Item]:
        """The records of one shard; what cannot be one goes to `bad`, and the names of files whose
        first picture is not their only one to `several`."""
        source, layout = self.source, self.layout
        expected = (layout.resolution, layout.resolution, layout.channels)
        for place in range(self.starts[number], self.starts[number + 1]):
            item = int(layout.items[int(self.order[place])])
            before = source.several
            try:
                pixels = source.read(item, self.wanted)
                if pixels.shape != expected:
                    raise BadImage("size differs from its header")
            except BadImage as error:
                bad.append((source.name(item), source.member(item), str(error)))
                continue
            if source.several > before:
                several.append(source.member(item))
            # A key is the place in the shuffled order, also when an earlier file was bad.
            yield f"{place:09d}", pixels, int(source.labels[item])
