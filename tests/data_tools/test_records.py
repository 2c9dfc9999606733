"""PNG records: exactly what `encode_image` writes, read without Pillow's parser of chunks."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fasttrain_data import DataError
from fasttrain_data.records import decode_image, encode_image

PIXELS = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
HEADER = struct.pack(">IIBBBBB", 5, 5, 8, 2, 0, 0, 0)
STREAM = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(*chunks: bytes, header: bytes = HEADER) -> bytes:
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def decoded(data: bytes) -> np.ndarray:
    return decode_image(data, "png", resolution=5, channels=3, where="a.png")


@pytest.mark.parametrize("side", [1, 2, 7, 64, 300])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("record", ["png", "webp"])
def test_pixels_come_back(side: int, channels: int, record: str, rng: np.random.Generator) -> None:
    noise = rng.integers(0, 256, (side, side, channels), dtype=np.uint8)
    for pixels in (noise, np.zeros_like(noise), noise // 8 * 8):
        data = encode_image(pixels, record)  # type: ignore[arg-type]
        found = decode_image(
            data,
            record,  # type: ignore[arg-type]
            resolution=side,
            channels=channels,
            where="",
        )
        np.testing.assert_array_equal(found, pixels)


def test_the_compressed_pixels_may_come_in_pieces() -> None:
    pieces = [chunk(b"IDAT", STREAM[at : at + 7]) for at in range(0, len(STREAM), 7)]
    np.testing.assert_array_equal(decoded(png(*pieces)), PIXELS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", STREAM)), "damaged PNG"),
        (png(chunk(b"iCCP", b"a\0\0" + STREAM), chunk(b"IDAT", STREAM)), "damaged PNG"),
        (png(chunk(b"IDAT", STREAM, checksum=1)), "damaged PNG"),
        (png(chunk(b"IDAT", STREAM))[:-1], "damaged PNG"),
        (png(chunk(b"IDAT", zlib.compress(b"\x09" + bytes(79)))), "damaged PNG"),
        (png(), "damaged PNG"),
        (SIGNATURE + chunk(b"IHDR", HEADER) + struct.pack(">I", 2**32 - 1), "damaged PNG"),
        (png(chunk(b"IDAT", STREAM), header=HEADER[:-1] + b"\x01"), "interlaced"),
    ],
    ids=["text", "profile", "checksum", "end", "filter", "nothing", "length", "interlaced"],
)
def test_other_chunks_and_damage_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decoded(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_found_or_changes_nothing(at: int, value: int) -> None:
    data = bytearray(png(chunk(b"IDAT", STREAM)))
    data[at % len(data)] = value
    try:
        found = decoded(bytes(data))
    except DataError:
        return
    np.testing.assert_array_equal(found, PIXELS)


def test_pillow_reads_what_is_written() -> None:
    with Image.open(io.BytesIO(encode_image(PIXELS))) as image:
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
