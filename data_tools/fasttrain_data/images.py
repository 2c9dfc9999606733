"""Decoding images that may be anything: the size is read from the header before a pixel is decoded.

    header = read_header(file)                                    # size and greyness, no pixel
    pixels = read_pixels(file, Wanted(channels=3, resolution=64)) # uint8 [64, 64, 3]

For files that a user hands in, of the formats in `picture_file.py`. What our own shards hold is in
`records.py`.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fasttrain_data.orientation import upright
from fasttrain_data.picture_file import (
    GREY_MODES,
    MAX_JPEG_PIXELS,
    MAX_PIXELS,
    BadImage,
    check_size,
    open_picture,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CROPS", "MAX_JPEG_PIXELS", "MAX_PIXELS", "BadImage", "Crop", "Header"]
__all__ += [
    "Picture",
    "Wanted",
    "fit",
    "open_regular",
    "read_header",
    "read_picture",
    "read_pixels",
]

MAX_FILE_BYTES = 256 << 20
MAX_SCANS = 100
_JPEG_MARK = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_STRIP_PIXELS = 4 << 20

Crop = Literal["center", "adm", "none"]
CROPS: tuple[Crop, ...] = ("center", "adm", "none")


class Header(NamedTuple):
    """What the header of an image file says: size as displayed, whether it is grey, and whether
    more pictures follow the first."""

    width: int
    height: int
    grey: bool
    several: bool = False


class Picture(NamedTuple):
    """A decoded file: uint8 [H, W, channels], and whether more pictures follow the first."""

    pixels: npt.NDArray[np.uint8]
    several: bool


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an image is made into.

    Attributes:
        channels: 1 grey (Rec. 601 luma), 3 colour.
        resolution: pixels a side; None leaves the size.
        crop: `center`, a centred square and a Lanczos resize, which antialiases; `adm`, halved with
            a box filter while it can be, then bicubic, then a centred square (Dhariwal and Nichol
            2021, what ImageNet-64 models were trained on); `none`, the whole of a square image.
        background: RGB that shows through transparent pixels.
    """

    channels: int
    resolution: int | None = None
    crop: Crop = "center"
    background: tuple[int, int, int] = (255, 255, 255)


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file of bounded size; a FIFO or device would block or never end.

    Raises BadImage.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadImage(f"more than {MAX_FILE_BYTES >> 20} MiB")
        yield file


def read_header(file: IO[bytes]) -> Header:
    """Read size and greyness without decoding. Raises BadImage."""
    image, turn, several = open_picture(file, header=True)
    width, height = image.size[::-1] if turn in (5, 6, 7, 8) else image.size
    return Header(width, height, image.mode in GREY_MODES or _is_grey_gif(image), several)


def read_pixels(file: IO[bytes], wanted: Wanted) -> npt.NDArray[np.uint8]:
    """Decode a file's first picture to uint8 [H, W, channels]. Raises BadImage."""
    return read_picture(file, wanted).pixels


def read_picture(file: IO[bytes], wanted: Wanted) -> Picture:
    """Decode a file's first picture. Raises BadImage.

    In this order: EXIF orientation, alpha over the background, grey or RGB, crop and resize.
    """
    image, turn, several = open_picture(file)
    try:
        if image.format == "JPEG":
            if "progressive" in image.info:
                _check_scans(file)
            _halve(image, wanted)
        image.load()
        image = _flatten(upright(image, turn), wanted)
    except BadImage:
        raise
    except Exception as error:  # damaged streams raise many types inside a decoder
        raise BadImage("damaged image") from error
    return Picture(_pixels(_fit(image, wanted)), several)


def fit(pixels: npt.NDArray[np.uint8], wanted: Wanted) -> npt.NDArray[np.uint8]:
    """What `read_pixels` makes of an image that is decoded already, uint8 [H, W, 1 or 3]."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return _pixels(_fit(image.convert("RGB" if wanted.channels == 3 else "L"), wanted))


def _is_grey_gif(image: Image.Image) -> bool:
    """Every GIF has a palette: it is grey when the palette has greys alone."""
    # Pillow's `getpalette` would decode the pixels.
    colours = image.palette.palette if image.format == "GIF" and image.palette else b"\0\1"
    return colours[::3] == colours[1::3] == colours[2::3]


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)


def _halve(image: Image.Image, wanted: Wanted) -> None:
    """Let a JPEG of more pixels than are held be decoded at half its size, if that is enough."""
    width, height = image.size
    if width * height <= MAX_PIXELS:
        return
    if wanted.resolution is None or min(width, height) // 2 < wanted.resolution:
        raise BadImage("too many pixels")
    image.draft(image.mode, (width // 2, height // 2))
    check_size(*image.size)


def _check_scans(file: IO[bytes]) -> None:
    """A progressive JPEG may go over all its pixels again for every hundred bytes."""
    file.seek(0)
    data = file.read()
    scans, at = 0, 2
    while (mark := _JPEG_MARK.search(data, at)) and mark[0] != b"\xff\xd9":
        scans += mark[0] == b"\xff\xda"
        if scans > MAX_SCANS:
            raise BadImage(f"more than {MAX_SCANS} scans")
        at = mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")


def _flatten(image: Image.Image, wanted: Wanted) -> Image.Image:
    """Grey or RGB; a strip at a time, for on the way there are up to five images."""
    mode = "RGB" if wanted.channels == 3 else "L"
    if image.mode == mode and "transparency" not in image.info:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return _flat(image, mode, wanted)
    whole = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(_flat(strip, mode, wanted), (0, top))
    return whole


def _flat(image: Image.Image, mode: str, wanted: Wanted) -> Image.Image:
    if image.mode.startswith("I;16"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        wide = np.asarray(image).astype(np.uint32)
        grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        key = image.info.get("transparency")
        image = Image.fromarray(grey)
        if isinstance(key, int):
            image.putalpha(Image.fromarray(np.where(wide == key, 0, 255).astype(np.uint8)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*wanted.background, 255))
        image = Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert(mode)


def _fit(image: Image.Image, wanted: Wanted) -> Image.Image:
    side = wanted.resolution
    if side is None:
        return image
    if wanted.crop == "adm":
        return _adm(image, side)
    if wanted.crop == "center":
        image = _centre(image, min(image.size))
    if image.width != image.height:
        raise BadImage("not square")
    return image if image.width == side else image.resize((side, side), Image.Resampling.LANCZOS)


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _adm(image: Image.Image, side: int) -> Image.Image:
    while min(image.size) >= 2 * side:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    if size[0] * size[1] > MAX_PIXELS:
        raise BadImage("too many pixels at the resolution wanted")
    return _centre(image.resize(size, Image.Resampling.BICUBIC), side)
