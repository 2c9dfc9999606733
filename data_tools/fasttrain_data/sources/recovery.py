"""Shards of raw pixels whose `index.json` was lost: all but the names of the classes is in them.

index = recovered_index(Path("data/emoji-raw"))        # None where there are none
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

from fasttrain_data.errors import DataError
from fasttrain_data.index import (
    FORMAT_VERSION,
    MAX_CLASSES,
    ClassInfo,
    ContentHash,
    Index,
    ShardInfo,
)
from fasttrain_data.reader import read_records
from fasttrain_data.records import digest

__all__ = ["recovered_index"]

_SHAPE = re.compile(
    rb"'descr': '\|u1'.{1,60}'shape': \([0-9]+, ([13]), ([0-9]{1,4}), \2\)", re.DOTALL
)


def recovered_index(root: Path) -> Index | None:
    """What the index of a folder of raw shards must have been, classes named by their numbers; None
    for a folder of anything else. Raises DataError for damaged shards."""
    shards = sorted(root.glob("shard-*.tar"))
    head = b""
    if shards and shards[0].is_file():
        with shards[0].open("rb") as file:
            head = file.read(1024)
    shape = _SHAPE.search(head)
    if shape is None or b".images.npy\0" not in head[:100]:
        return None
    index = _provisional(int(shape[2]), int(shape[1]))
    content, images, infos = ContentHash(index.resolution, index.channels), Counter[int](), []
    for path in shards:
        count = 0
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            for record in read_records(file, index, name=str(path)):
                assert not isinstance(record.image, bytes)
                if not 0 <= record.label < MAX_CLASSES:
                    raise DataError(f"{path}: {record.key} has label {record.label}")
                content.add(record.label, digest(record.image.transpose(1, 2, 0)))
                images[record.label] += 1
                count += 1
        size = path.stat().st_size
        infos.append(ShardInfo(name=path.name, images=count, bytes=size, sha256=sha256))
    classes = [ClassInfo(name=str(n), images=images[n]) for n in range(max(images) + 1)]
    fields = {"classes": tuple(classes), "images": images.total(), "shards": tuple(infos)}
    return index.model_copy(update={**fields, "content_sha256": content.hexdigest()})


def _provisional(resolution: int, channels: int) -> Index:
    """What it takes to read the records."""
    return Index(
        format_version=FORMAT_VERSION,
        resolution=resolution,
        channels=1 if channels == 1 else 3,
        record="raw",
        classes=(ClassInfo(name="0", images=1),),
        images=1,
        shards=(ShardInfo(name="shard-000000.tar", images=1, bytes=1 << 40, sha256="0" * 64),),
        content_sha256="0" * 64,
        source={},
        options={},
    )
