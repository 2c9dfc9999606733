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

__all__ = ["font_for", "preview"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts")
MOST_FONTS = 500
"""Files that are tried."""
MISSING = "\U0010fffd"
"""A character that no font has."""
_GAP = 2
_LARGEST = 256
_TEXT_WIDTH = 120


def preview(
    path: str | Path, out: str | Path, *, columns: int = 16, max_classes: int = 40
) -> tuple[int, int]:
    """Write a PNG with the first `columns` images of each of the first `max_classes` classes.

    Images smaller than 32 pixels are enlarged by a whole factor, those larger than 256 made so
    small. A name is written in Pillow's font, or in one of the system's that has all of its
    characters; where there is none, `class N` stands for it. Returns (classes, images) shown.
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
    draw = ImageDraw.Draw(sheet)
    for row, images in enumerate(rows):
        top = row * cell + _GAP
        name = index.classes[row].name
        name = name if len(name) <= 18 else name[:17] + "…"
        font = font_for(name)
        if font is None:
            name, font = f"class {row}", ImageFont.load_default()
        draw.text((4, top + cell // 2 - 8), name, "black", font)
        for column, image in enumerate(images):
            sheet.paste(image, (_TEXT_WIDTH + column * cell, top))
    target = Path(out).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        sheet.save(partial, "PNG")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return len(rows), sum(map(len, rows))


def font_for(text: str) -> Font | None:
    """A font that has a glyph for every character of a text; None where this machine has none."""
    font: Font = ImageFont.load_default()
    if _has(font, text):
        return font
    files = sorted(file for folder in FONT_FOLDERS for file in Path(folder).rglob("*.[to]t[fc]"))
    for file in files[:MOST_FONTS]:
        try:
            font = ImageFont.truetype(file, 11)
            if _has(font, text):
                return font
        except OSError:  # damaged, or not a font
            continue
    return None


def _has(font: Font, text: str) -> bool:
    """Whether no character is drawn as the box of those that a font lacks."""
    box = bytes(font.getmask(MISSING))
    return all(c.isspace() or bytes(font.getmask(c)) != box for c in set(text))


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
