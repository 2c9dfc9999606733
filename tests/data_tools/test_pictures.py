"""Pictures as cameras and tools write them: what is not pixels decides nothing."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasttrain_data import DataError, convert
from fasttrain_data.images import BadImage, Wanted, read_header, read_pixels
from tests.data_tools.sources import content, png
from tests.hostile.files import chunk

CASES = Path(__file__).parent / "cases"
GREY, COLOUR = Wanted(channels=1), Wanted(channels=3)


@pytest.mark.parametrize("name", ["o-byte.jpg", "text-large.png", "iccp-bad-crc.png"])
def test_cases_are_read(name: str) -> None:
    pixels = read_pixels(io.BytesIO((CASES / name).read_bytes()), COLOUR)
    rows, columns = np.mgrid[:16, :16]
    expected = np.stack([columns * 17, rows * 17, np.full((16, 16), 111)], -1)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= (3 if name.endswith("jpg") else 0)


def test_a_colour_key_of_sixteen_bits() -> None:
    file = io.BytesIO((CASES / "trns-grey16.png").read_bytes())
    assert read_header(file) == (4, 4, True, False)
    pixels = read_pixels(file, GREY)[..., 0]
    assert pixels.tolist() == [[255, 78, 156, 255]] * 4
    assert read_pixels(file, Wanted(channels=1, background=(9, 9, 9)))[0, 0, 0] == 9


def encoded(depth: int, kind: int, rows: list[bytes], key: bytes, width: int) -> io.BytesIO:
    """A PNG with a colour key."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = (
        chunk(b"IHDR", header),
        chunk(b"tRNS", key),
        chunk(b"IDAT", data),
        chunk(b"IEND", b""),
    )
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (1, b"\x40", 1, [0, 255, 0, 0]),
        (1, b"\xb0", 0, [255, 255, 255, 255]),
        (2, b"\x1b", 3, [0, 85, 170, 255]),
        (2, b"\x1b", 0, [255, 85, 170, 255]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),
        (4, b"\x12\x34", 2, [17, 255, 51, 68]),
        (8, b"\x01\x02\x03\x04", 3, [1, 2, 255, 4]),
    ],
)
def test_a_colour_key_is_in_the_depth_of_the_file(
    depth: int, row: bytes, key: int, expected: list[int]
) -> None:
    file = encoded(depth, 0, [row], struct.pack(">H", key), 4)
    assert read_pixels(file, GREY)[0, :, 0].tolist() == expected


def test_a_colour_key_of_sixteen_bits_a_band() -> None:
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x2000, 0x3000, 0x4000)
    file = encoded(16, 2, [row], struct.pack(">3H", 0x1234, 0x5678, 0x9ABC), 2)
    assert read_pixels(file, COLOUR)[0].tolist() == [[255, 255, 255], [0x20, 0x30, 0x40]]


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0", b"Exif\0\0II*"],
)
def test_an_orientation_that_is_none_means_upright(exif: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 4), 100).save(buffer, "JPEG", exif=exif)
    assert read_header(buffer)[:2] == (8, 4)
    assert read_pixels(buffer, GREY).shape == (4, 8, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation(kind: str, turn: int) -> None:
    from PIL import ImageOps

    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :16], pixels[8:, 16:] = 255, 128
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    Image.fromarray(pixels).convert("RGB").save(buffer, kind, exif=exif, quality=100)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(buffer)).convert("L"))
    assert read_header(buffer)[:2] == expected.shape[::-1]
    np.testing.assert_array_equal(read_pixels(buffer, GREY)[..., 0], expected)


def test_a_photograph_of_more_pixels_than_are_held_is_halved(tmp_path: Path) -> None:
    side = 8200  # 67.2 million pixels
    image = Image.new("L", (side, side), 60)
    image.paste(200, (side // 2, 0, side, side))
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in/x.jpg", quality=50)
    convert(tmp_path / "in", tmp_path / "set", resolution=8)
    ((_, pixels),) = content(tmp_path / "set")
    rows = np.frombuffer(pixels, np.uint8).reshape(8, 8)
    assert np.abs(rows[:, :3].astype(int) - 60).max() <= 2
    assert np.abs(rows[:, 5:].astype(int) - 200).max() <= 2
    for options in ({"resolution": 4101}, {}):
        with pytest.raises(DataError, match=r"x\.jpg: too many pixels"):
            convert(tmp_path / "in", tmp_path / "large", **options)
    header = (
        (tmp_path / "in/x.jpg")
        .read_bytes()[:700]
        .replace(struct.pack(">HH", side, side), b"\xff\xff" * 2)
    )
    with pytest.raises(BadImage, match="too many pixels"):
        read_header(io.BytesIO(header))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF, not read: convert it to PNG or JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, not read: convert it to PNG or JPEG"),
        (b"GIF89a\x01\0\x01\0", "damaged image"),
        (b"II*\0\x08\0\0\0", "damaged image"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL, not read: convert it to PNG or JPEG"),
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>", "is a web page, saved under this name: the download failed or"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file"),
        (b"hello", "not an image"),
    ],
)
def test_a_refusal_names_what_a_file_is(data: bytes, reason: str) -> None:
    for read in (read_header, lambda file: read_pixels(file, GREY)):
        with pytest.raises(BadImage) as caught:
            read(io.BytesIO(data))
        assert str(caught.value).startswith(reason)


def test_a_wrong_checksum_of_pixels_is_still_refused() -> None:
    data = bytearray(png(np.full((4, 4), 7, np.uint8)))
    place = data.index(b"IHDR") + 4 + 13
    data[place] ^= 1
    with pytest.raises(BadImage):
        read_pixels(io.BytesIO(bytes(data)), GREY)
