"""Decoding images that may be anything: the size is read from the header before a pixel is decoded.

Two readers: `open_source_image` for files a user hands in (PNG, JPEG, WebP, BMP), and `decode_png`
for our own records, which must have exactly the size and channels that the index promises.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fasttrain_data.errors import DataError

__all__ = ["EXTENSIONS", "BadImage", "Header", "decode_png", "encode_png", "read_header"]
__all__ += ["read_pixels"]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 64 << 20
MAX_FILE_BYTES = 256 << 20
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16B"})
_MODES = _GREY_MODES | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}


class BadImage(Exception):
    """A file that cannot become a record. `str(error)` is the reason, the key it is counted by."""


class Header(NamedTuple):
    """What the header of an image file says: size as displayed, and whether it is grey."""

    width: int
    height: int
    grey: bool


def _open(path: Path) -> io.BufferedReader:
    """Open a regular file; a FIFO or device would block or never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise BadImage("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        file.close()
        raise BadImage(f"more than {MAX_FILE_BYTES >> 20} MiB")
    return file


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8. Cameras write it into JPEG and WebP headers, before the pixels."""
    if image.format not in ("JPEG", "WEBP"):
        return 1
    return int(image.getexif().get(0x0112, 1))


def _open_image(file: io.BufferedReader) -> tuple[Image.Image, Header]:
    """Parse the header only; refuse images whose pixels would not be reasonable to hold."""
    try:
        image = Image.open(file, formats=FORMATS)
        turned = _orientation(image) in (5, 6, 7, 8)
    except Image.DecompressionBombError as error:
        raise BadImage("too many pixels") from error
    except Exception as error:  # a hostile header can raise nearly anything inside a decoder
        raise BadImage("not an image") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage("too many pixels")
    if width < 1 or height < 1:
        raise BadImage("no pixels")
    if image.mode not in _MODES:
        raise BadImage(f"pixel format {image.mode} is not supported")
    if turned:
        width, height = height, width
    return image, Header(width, height, image.mode in _GREY_MODES)


def read_header(path: Path) -> Header:
    """Read size and greyness without decoding. Raises BadImage."""
    with _open(path) as file:
        return _open_image(file)[1]


def read_pixels(
    path: Path, *, channels: int, resolution: int | None, background: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Decode a file to uint8 [H, W, channels]. Raises BadImage.

    In this order: EXIF orientation, alpha over `background`, RGB or grey (Rec. 601 luma), and with
    `resolution` a centred square crop and a Lanczos resize (Pillow's, which antialiases).
    """
    with _open(path) as file:
        image, _ = _open_image(file)
        try:
            image.load()
            if _orientation(image) != 1:
                image = ImageOps.exif_transpose(image)
            image = _flatten(image, channels, background)
            if resolution is not None:
                image = _crop_and_resize(image, resolution)
        except Exception as error:  # as above: damaged streams raise many types
            raise BadImage("damaged image") from error
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def _flatten(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I;16"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB" if channels == 3 else "L")


def _crop_and_resize(image: Image.Image, resolution: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side == resolution:
        return image
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H, W, 1 or 3] as 8-bit PNG; the same bytes with the same library versions."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def decode_png(data: bytes, *, resolution: int, channels: int, where: str) -> npt.NDArray[np.uint8]:
    """Decode one record to uint8 [H, W, channels].

    The header is compared before decoding, so that a record can never ask for more memory than the
    index promises. Raises DataError, naming `where`.
    """
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise DataError(f"{where} is not a PNG image: convert the set again")
    width, height, depth, color = struct.unpack(">IIBB", data[16:26])
    if (width, height) != (resolution, resolution):
        raise DataError(f"{where} is {width}x{height}, the index says {resolution}x{resolution}")
    if (depth, color) != (8, 0 if channels == 1 else 2):
        raise DataError(f"{where} does not have the {channels} channels of 8 bits of the index")
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    except Exception as error:  # damaged streams raise many types inside the decoder
        raise DataError(f"{where} is a damaged PNG image: convert the set again") from error
    pixels = np.asarray(image, dtype=np.uint8)
    if pixels.size != resolution * resolution * channels:
        raise DataError(f"{where} does not decode to {channels} channels: convert the set again")
    return pixels.reshape(resolution, resolution, channels)
