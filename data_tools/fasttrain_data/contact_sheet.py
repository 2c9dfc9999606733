"""A contact sheet: a row a class, so that one look tells whether images and labels belong together.

preview("data/digits", "digits.png")
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fasttrain_data.errors import DataError
from fasttrain_data.index import Index, load_index
from fasttrain_data.reader import decode_record, open_shard, read_records

__all__ = ["preview"]

_GAP = 2
_LARGEST = 256
_TEXT_WIDTH = 120


def preview(
    path: str | Path, out: str | Path, *, columns: int = 16, max_classes: int = 40
) -> tuple[int, int]:
    """Write a PNG with the first `columns` images of each of the first `max_classes` classes.

    Images smaller than 32 pixels are enlarged by a whole factor, those larger than 256 made so
    small. Returns (classes, images) shown.
    Raises DataError, OSError.
    """
    if columns < 1 or max_classes < 1:
        raise DataError("a preview needs at least one column and one class")
    index = load_index(path)
    index.check_images(path)
    side = min(_LARGEST, index.resolution * max(1, -(-32 // index.resolution)))
    rows = _first_images(Path(path), index, columns, max_classes, side)
    cell = side + _GAP
    sheet = Image.new("RGB", (_TEXT_WIDTH + columns * cell, len(rows) * cell + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for row, images in enumerate(rows):
        top = row * cell + _GAP
        name = index.classes[row].name
        name = name if len(name) <= 18 else name[:17] + "…"
        draw.text((4, top + cell // 2 - 8), name, "black", font)
        for column, image in enumerate(images):
            sheet.paste(image, (_TEXT_WIDTH + column * cell, top))
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        sheet.save(partial, "PNG")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return len(rows), sum(map(len, rows))


def _first_images(
    folder: Path, index: Index, columns: int, max_classes: int, side: int
) -> list[list[Image.Image]]:
    """Read shards in order until every row is full; hashes are `verify`'s business."""
    rows: list[list[Image.Image]] = [[] for _ in index.classes[:max_classes]]
    missing = sum(min(columns, info.images) for info in index.classes[:max_classes])
    for shard in index.shards:
        name = str(folder / shard.name)
        with open_shard(folder, shard, check_hash=False) as file:
            for record in read_records(file, index, name=name):
                if record.label < len(rows) and len(rows[record.label]) >= columns:
                    continue
                pixels = decode_record(record, index, name=name)
                if record.label < len(rows):
                    rows[record.label].append(_sized(pixels, side))
                    missing -= 1
        if missing <= 0:
            break
    return rows


def _sized(pixels: npt.NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    how = Image.Resampling.NEAREST if side >= image.width else Image.Resampling.BOX
    return image.resize((side, side), how)
