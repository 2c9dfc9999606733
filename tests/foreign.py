"""WebDataset's tars for tests, by webdataset's own ShardWriter: photographs of several sizes, whose
pixels tell which one it is.

write_shards(folder, images=20, per_shard=6)
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

__all__ = ["photo", "write_shards", "write_sorted"]

SIDES = ((12, 9), (8, 8), (9, 16), (20, 20))


def photo(number: int, ending: str = "png", channels: int = 1) -> bytes:
    """An image of one of four sizes, of one value."""
    width, height = SIDES[number % len(SIDES)]
    pixels = np.full((height, width, channels), number, np.uint8)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    buffer = io.BytesIO()
    kind, options = {"png": ("PNG", {}), "jpg": ("JPEG", {"quality": 95})}[ending]
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_shards(
    folder: Path,
    *,
    images: int,
    per_shard: int,
    classes: int = 3,
    ending: str = "png",
    channels: int = 1,
    first: int = 0,
    **extra: Any,
) -> Path:
    """`set-NNNNNN.tar` with KEY.png and KEY.cls: image i has the label i modulo `classes`."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / "set-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for number in range(first, first + images):
            sample = {"__key__": f"{number:05d}", ending: photo(number, ending, channels)}
            writer.write(sample | {"cls": number % classes} | extra)
    return folder


def write_sorted(folder: Path, *, classes: int, each: int, per_shard: int) -> Path:
    """Tars in the order of their classes: of each there are `each` images, of the class's value."""
    folder.mkdir(parents=True)
    pattern = str(folder / "set-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for number in range(classes * each):
            label = number // each
            writer.write({"__key__": f"{number:05d}", "png": photo(label), "cls": label})
    return folder
