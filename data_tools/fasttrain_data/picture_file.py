"""A picture's file, of which the header alone was parsed and found to be reasonable.

    image, turn, several = open_picture(file)      # Pillow's image, EXIF's orientation

PNG, JPEG, WebP, BMP, GIF and TIFF. Of the formats whose decoders look at more than the first
picture's pixels (texts, comments, thumbnails, later pages) a file without these is decoded.
"""

from __future__ import annotations

from typing import IO, NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from fasttrain_data.foreign import what_picture
from fasttrain_data.gif_blocks import needed_blocks
from fasttrain_data.libtiff import silence
from fasttrain_data.orientation import orientation
from fasttrain_data.png_chunks import needed_chunks
from fasttrain_data.tiff_tags import UnusableTiff, needed_tags

__all__ = ["GREY_MODES", "MAX_JPEG_PIXELS", "MAX_PIXELS", "BadImage"]
__all__ += ["OpenedPicture", "check_size", "open_picture"]

MAX_PIXELS = 64 << 20
MAX_JPEG_PIXELS = 256 << 20
"""Of phones' photographs, that are decoded at half their size."""
GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16B"})
_MODES = GREY_MODES | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}


class BadImage(Exception):
    """A file that cannot become a record. `str(error)` is the reason, the key it is counted by."""


class OpenedPicture(NamedTuple):
    """The first picture of a file.

    Attributes:
        image: of which no pixel is decoded.
        orientation: EXIF's, 1 to 8.
        several: whether more pictures follow, of an animation or of pages.
    """

    image: Image.Image
    orientation: int
    several: bool


def open_picture(file: IO[bytes], *, header: bool = False) -> OpenedPicture:
    """Parse the header only, which with `header` is all that is wanted; refuse images whose pixels
    would not be reasonable to hold. Raises BadImage."""
    try:
        _check_webp(file)
        opened = _parsed(file, header)
    except (BadImage, MemoryError):
        raise
    except UnusableTiff as error:
        raise BadImage(str(error)) from error
    except Image.DecompressionBombError as error:
        raise BadImage("too many pixels") from error
    except Exception as error:  # a hostile header can raise nearly anything inside a decoder
        file.seek(0)
        raise BadImage(what_picture(file.read(512))) from error
    image = opened.image
    check_size(*image.size, most=MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS)
    if image.mode not in _MODES:
        raise BadImage(f"pixel format {image.mode} is not supported")
    return opened


def _parsed(file: IO[bytes], header: bool) -> OpenedPicture:
    png = needed_chunks(file, header=header)
    if png is not None:
        image = Image.open(png.file, formats=("PNG",))
        _scale_key(image, png.depth)
        return OpenedPicture(image, orientation(image, png.exif), png.several)
    gif = needed_blocks(file)
    if gif is not None:
        return OpenedPicture(Image.open(gif.file, formats=("GIF",)), 1, gif.several)
    tiff = needed_tags(file, header=header)
    if tiff is not None:
        silence()
        check_size(tiff.tile or 1, 1)
        image = Image.open(tiff.file, formats=("TIFF",))
        return OpenedPicture(image, tiff.orientation, tiff.several)
    mark = file.read(2)
    file.seek(0)
    if mark == b"\xff\xd8":  # as Pillow would open it, but that our own limit holds
        image = JpegImageFile(file)
        return OpenedPicture(image, orientation(image, b""), False)
    image = Image.open(file, formats=("WEBP", "BMP"))
    several = image.format == "WEBP" and getattr(image, "n_frames", 1) > 1
    return OpenedPicture(image, orientation(image, b""), several)


def _scale_key(image: Image.Image, depth: int) -> None:
    """A PNG's transparent grey or colour is written in the file's own depth, and Pillow compares it
    with 8 bits. Of 16 bits of colour Pillow keeps the upper 8; 16-bit grey is compared as it is."""
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode in ("1", "L") and depth < 8:
        image.info["transparency"] = key * 255 // ((1 << depth) - 1)
    elif isinstance(key, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)


def check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Raises BadImage."""
    if width * height > most:
        raise BadImage("too many pixels")
    if width < 1 or height < 1:
        raise BadImage("no pixels")


def _check_webp(file: IO[bytes]) -> None:
    """libwebp allocates two canvases while a file is opened, up to 2 GB: look before."""
    head = file.read(30)
    file.seek(0)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    if head[12:16] == b"VP8X":
        width = 1 + int.from_bytes(head[24:27], "little")
        check_size(width, 1 + int.from_bytes(head[27:30], "little"))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        check_size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    elif head[12:16] == b"VP8 ":
        sides = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        check_size(*sides)
