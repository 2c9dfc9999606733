"""How the images of a shard are stored, by the index's `record`:

    png, webp   KEY.png (8 bits, grey or RGB) or KEY.webp (lossless, RGB) and KEY.cls, a number
    raw         KEY.images.npy, uint8 [n, C, H, W], and KEY.labels.npy, int32 [n]: up to 64 images
    latents     KEY.latents.npy, float16 [n, K C, H, W], and KEY.labels.npy: the means of an image's
                C channels, then the deviations, then, where flips are stored, those of its mirror
                image

All are what webdataset's users know, and all are compared with the index before a byte is decoded,
so that a record can never ask for more memory than the index promises.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from fasttrain_data.errors import DataError

__all__ = ["ENDINGS", "MAX_RECORD_BYTES", "RECORDS", "Format", "Stored", "chunk_images"]
__all__ += ["decode_image", "digest", "encode_image", "npy_header", "parse_npy"]

Format = Literal["png", "webp", "raw"]
Stored = Literal[Format, "latents"]
RECORDS: tuple[Format, ...] = ("png", "webp", "raw")
MAX_RECORD_BYTES = 64 << 20
# Endings of the two members of a record, images first.
ENDINGS: dict[Stored, tuple[str, str]] = {
    "png": ("png", "cls"),
    "webp": ("webp", "cls"),
    "raw": ("images.npy", "labels.npy"),
    "latents": ("latents.npy", "labels.npy"),
}
_CHUNK_IMAGES, _CHUNK_BYTES = 64, 8 << 20
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(\|u1|<i4|<f2)', 'fortran_order': False, "
    rb"'shape': \(([0-9, ]{1,60})\), \} *\n",
    re.DOTALL,
)


def digest(pixels: npt.NDArray[np.uint8]) -> bytes:
    """SHA-256 of the bytes of one image, uint8 [H, W, C], whatever it was stored as."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()


def encode_image(pixels: npt.NDArray[np.uint8], record: Format = "png") -> bytes:
    """Encode uint8 [H, W, 1 or 3]; the same bytes with the same library versions."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if record == "png":
        image.save(buffer, "PNG", compress_level=6)
    else:
        image.convert("RGB").save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return buffer.getvalue()


def decode_image(
    data: bytes, record: Format, *, resolution: int, channels: int, where: str
) -> npt.NDArray[np.uint8]:
    """Decode one PNG or WebP record to uint8 [H, W, channels]. Raises DataError, naming `where`."""
    try:
        if record == "png":
            _check_png(data, resolution, channels, where)
            mode = "L" if channels == 1 else "RGB"
            side = (resolution, resolution)
            image = Image.frombytes(mode, side, _png_pixels(data), "zip", mode, 0)
        else:
            _check_webp(data, resolution, where)
            image = Image.open(io.BytesIO(data), formats=("webp",))
        pixels = np.asarray(image, dtype=np.uint8)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damaged streams raise many types inside the decoder
        raise DataError(
            f"{where} is a damaged {_NAMES[record]} image: convert the set again"
        ) from error
    if record == "webp" and channels == 1 and pixels.ndim == 3:
        pixels = pixels[..., 0]
    if pixels.size != resolution * resolution * channels:
        raise DataError(f"{where} does not decode to {channels} channels: convert the set again")
    return pixels.reshape(resolution, resolution, channels)


_NAMES = {"png": "PNG", "webp": "WebP"}


def _check_png(data: bytes, resolution: int, channels: int, where: str) -> None:
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise DataError(f"{where} is not a PNG image: convert the set again")
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", data[16:29])
    _check_side(width, height, resolution, where)
    if (depth, color) != (8, 0 if channels == 1 else 2):
        raise DataError(f"{where} does not have the {channels} channels of 8 bits of the index")
    if any(rest):
        raise DataError(f"{where} is interlaced or of an unknown method: convert the set again")


def _png_pixels(data: bytes) -> bytes:
    """The compressed pixels of a PNG of the chunks that `encode_image` writes: IHDR, IDAT, IEND.

    Pillow's own parser would look at twenty kinds of chunks, and takes as long as the pixels of a
    small image. Raises ValueError, struct.error.
    """
    view, at = memoryview(data), 8
    parts: list[memoryview] = []
    while True:
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError("a chunk's checksum is wrong")
        if kind == b"IEND":
            return b"".join(parts)
        if kind == b"IDAT":
            parts.append(view[at + 8 : end])
        elif at > 8:
            raise ValueError("a chunk of another kind")
        at = end + 4


def _check_webp(data: bytes, resolution: int, where: str) -> None:
    """A lossless bitstream without the extended header, which could hold other frames."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or len(data) < 25 or data[20] != 0x2F:
        raise DataError(f"{where} is not a lossless WebP image: convert the set again")
    bits = int.from_bytes(data[21:25], "little")
    _check_side(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), resolution, where)


def _check_side(width: int, height: int, resolution: int, where: str) -> None:
    if (width, height) != (resolution, resolution):
        raise DataError(f"{where} is {width}x{height}, the index says {resolution}x{resolution}")


def chunk_images(image_bytes: int) -> int:
    """How many images a record of chunks holds: 64, or as many as fit into 8 MiB."""
    return max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // image_bytes))


Descr = Literal["|u1", "<i4", "<f2"]


def npy_header(descr: Descr, shape: tuple[int, ...]) -> bytes:
    """The header of an .npy file, version 1.0, as NumPy writes it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def parse_npy(data: bytes, descr: Descr, tail: tuple[int, ...], where: str) -> npt.NDArray[Any]:
    """The array in an .npy member as a read-only view, of shape [n, *tail], 1 <= n <= 64.

    Only the header that `npy_header` writes is taken, so nothing is evaluated. Raises DataError.
    """
    match = _NPY.match(data)
    shape = tuple(int(n) for n in match[2].replace(b",", b" ").split()) if match else ()
    if not match or match[1] != descr.encode() or not shape or shape[1:] != tail:
        raise DataError(f"{where} is not a {descr} array of the index's shape {list(tail)}")
    size = math.prod(shape) * np.dtype(descr).itemsize
    if not 1 <= shape[0] <= _CHUNK_IMAGES or len(data) - match.end() != size:
        raise DataError(f"{where} has {len(data)} bytes, not those of an array of {list(shape)}")
    return np.frombuffer(data, dtype=descr, offset=match.end()).reshape(shape)
