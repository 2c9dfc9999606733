"""Pictures. Each lies in a folder of images beside a sound one."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from typing import Any

from PIL import Image

from tests.hostile.cases import picture
from tests.hostile.files import chunk, image, png, riff, riff_chunk, zeros

__all__: list[str] = []

LEFT_OUT = "left out: in/a/evil."
BOTH = "out: 2 images of 8x8"


class Touches:
    """A pickle that makes a file where it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        import os

        return os.system, ("touch pwned",)


def text_chunk(kind: bytes, size: int) -> bytes:
    """A compressed text or profile of zeros."""
    head = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    return chunk(kind, head + zeros(size))


def animation(frames: int) -> bytes:
    """An APNG's own chunks, of a first frame of 6x6."""
    frame = struct.pack(">IIIIIHHBB", 0, 6, 6, 0, 0, 1, 10, 0, 0)
    return chunk(b"acTL", struct.pack(">II", frames, 0)) + chunk(b"fcTL", frame)


def webp(kind: bytes, side: int) -> bytes:
    """A WebP header and nothing after it."""
    body = {
        b"VP8X": struct.pack("<I", 0) + 2 * (side - 1).to_bytes(3, "little"),
        b"VP8L": b"\x2f" + ((side - 1) | (side - 1) << 14).to_bytes(4, "little") + bytes(16),
        b"VP8 ": b"\x10\0\0\x9d\x01\x2a" + 2 * side.to_bytes(2, "little") + bytes(16),
    }[kind]
    return riff(riff_chunk(kind, body), riff_chunk(b"VP8L", bytes(16)))


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG of 6x6 whose header says another size."""
    data = bytearray(image("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def scans(count: int, side: int = 8192) -> bytes:
    """A progressive JPEG that repeats all its pixels N more times."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    starts = [n for n in range(len(data) - 1) if data[n : n + 2] == b"\xff\xda"]
    again = data[starts[1] : data.index(b"\xff\xc4", starts[1])]
    end = data.rindex(b"\xff\xd9")
    return data[:end] + again * count + data[end:]


def large_jpeg() -> bytes:
    buffer = io.BytesIO()
    options = {"progressive": True, "subsampling": 0, "quality": 50}
    Image.new("RGB", (8192, 8192)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def bmp(width: int, height: int, colors: int = 0) -> bytes:
    """A BMP header."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, 0, 0, 0, colors, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def gif(side: int) -> bytes:
    """A GIF header."""
    size = 2 * struct.pack("<H", side)
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b",\0\0\0\0" + size + b"\0\x02\0"


def long_comment(blocks: int) -> bytes:
    """A GIF of 6x6 with a comment before its image."""
    data = image("GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    return data[:at] + b"!\xfe" + (b"\xff" + bytes(255)) * blocks + b"\0" + data[at:]


def tiff(
    tags: dict[int, int | tuple[int, int, int]],
    strip: bytes = bytes(36),
    more: int = 0,
    follows: bool = False,
) -> bytes:
    """A grey TIFF of 6x6 with other tags: a number, or type, count and offset; the strip comes
    first, then zeros, then the directory, which may say that it is followed by itself."""
    sound = {256: 6, 257: 6, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6, 279: len(strip)}
    rows = sorted({**sound, **tags}.items())
    at = 8 + len(strip) + more
    entries = b"".join(
        struct.pack("<HHII", tag, *(value if isinstance(value, tuple) else (4, 1, value)))
        for tag, value in rows
    )
    directory = struct.pack("<H", len(rows)) + entries + struct.pack("<I", at * follows)
    return b"II*\0" + struct.pack("<I", at) + strip + bytes(more) + directory


def exif(entries: int) -> bytes:
    """EXIF data that claim N entries, each as long as can be."""
    row = struct.pack("<HHII", 0x010E, 7, 0xFFFFFFFF, 0xFFFFFFF0)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries) + row * 100


SECOND_HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
PIXELS = f"{LEFT_OUT}png: too many pixels"

picture("PNG header of 60,000x60,000", lambda: png(60000, 60000, data=b""), PIXELS)
picture("PNG header of 2,147,483,647 squared", lambda: png(2**31 - 1, 2**31 - 1, data=b""), PIXELS)
picture("PNG of 9,000x9,000 zeros", lambda: png(9000, 9000), PIXELS)
picture(
    "PNG of 67,108,864x1, `--crop adm`",
    lambda: png(1 << 26, 1, color=0),
    f"{LEFT_OUT}png: too many pixels at the resolution wanted",
    crop="adm",
    megabytes=400,
)
picture(
    "PNG with a second header, of 60,000x60,000", lambda: png(6, 6, before=SECOND_HEADER), PIXELS
)
picture(
    "PNG of 6x6 whose data are 1 GiB of zeros",
    lambda: png(6, 6, data=zeros(1 << 30)),
    BOTH,
)
for _kind in (b"zTXt", b"iTXt", b"iCCP"):
    picture(
        f"PNG with a {_kind.decode()} chunk of 256 MiB of zeros",
        lambda kind=_kind: png(6, 6, before=text_chunk(kind, 256 << 20)),  # type: ignore[misc]
        BOTH,
    )
picture(
    "PNG with 100 zTXt chunks of a MiB of zeros each",
    lambda: png(6, 6, before=b"".join([text_chunk(b"zTXt", (1 << 20) - 1)] * 100)),
    BOTH,
    megabytes=200,
)
picture(
    "PNG with a tEXt chunk after its data that claims 2 GiB",
    lambda: png(6, 6, after=struct.pack(">I", 2**31 - 1) + b"tEXt" + b"a" * 100),
    BOTH,
)
picture("PNG cut in half", lambda: image(size=(64, 64))[:90], f"{LEFT_OUT}png: damaged image")
picture("PNG of 16 bits with transparency", lambda: png(6, 6, depth=16, color=6), BOTH)
picture(
    "APNG that claims 4,294,967,295 frames", lambda: png(6, 6, before=animation(2**32 - 1)), BOTH
)
picture("APNG of 2 frames, the second missing", lambda: png(6, 6, before=animation(2)), BOTH)
picture(
    "PNG of 8,192x8,192 transparent pixels, the most that is read",
    lambda: png(8192, 8192, color=6),
    BOTH,
    megabytes=700,
)
picture(
    "progressive JPEG of 8,192x8,192, the most that is read",
    large_jpeg,
    BOTH,
    ending="jpg",
    megabytes=1000,
)
picture(
    "progressive JPEG of 8,192x8,192 with 100,000 scans",
    lambda: scans(100_000),
    f"{LEFT_OUT}jpg: more than 100 scans",
    ending="jpg",
)
picture(
    "JPEG header of 65,500x65,500",
    lambda: jpeg_of(65500, 65500),
    f"{LEFT_OUT}jpg: too many pixels",
    ending="jpg",
)
picture(
    "JPEG with EXIF data of 65,535 entries of 4 GiB",
    lambda: image("JPEG", exif=exif(65535)),
    BOTH,
    ending="jpg",
)
for _kind in (b"VP8X", b"VP8L", b"VP8 "):
    picture(
        f"WebP header ({_kind.decode().strip()}) of 16,383x16,383",
        lambda kind=_kind: webp(kind, 16383),  # type: ignore[misc]
        f"{LEFT_OUT}webp: too many pixels",
        ending="webp",
    )
picture(
    "WebP header (VP8X) of 16,777,215x256",
    lambda: riff(riff_chunk(b"VP8X", bytes(4) + b"\xfe\xff\xff\xff\0\0")),
    f"{LEFT_OUT}webp: too many pixels",
    ending="webp",
)
picture(
    "BMP header of 65,535x65,535",
    lambda: bmp(65535, 65535),
    f"{LEFT_OUT}bmp: too many pixels",
    ending="bmp",
)
picture(
    "BMP header of -2,147,483,648 rows",
    lambda: bmp(6, -(2**31)),
    f"{LEFT_OUT}bmp: too many pixels",
    ending="bmp",
)
picture(
    "BMP with 4,294,967,295 colours",
    lambda: bmp(6, 6, 2**32 - 1),
    f"{LEFT_OUT}bmp: damaged image",
    ending="bmp",
)
picture(
    "GIF header of 65,535x65,535, named .png",
    lambda: gif(65535),
    f"{LEFT_OUT}png: too many pixels",
)
picture(
    "GIF of 6x6 with a comment of 40 MiB in 160,000 blocks",
    lambda: long_comment(163_840),
    BOTH,
    ending="gif",
    megabytes=200,
)
picture(
    "GIF of 20,000 pictures of 8,192x8,192, the first of 6x6",
    lambda: image("GIF")[:-1] + b",\0\0\0\0\0\x20\0\x20\0\x02\x02\x4c\x01\0" * 20_000 + b";",
    "out: 2 images of 8x8",
    ending="gif",
)
picture(
    "GIF cut in half",
    lambda: image("GIF", size=(64, 64))[:2000],
    f"{LEFT_OUT}gif: damaged",
    ending="gif",
)
picture(
    "PostScript, which Pillow would give to Ghostscript, named .png",
    lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    f"{LEFT_OUT}png: not an image",
)
picture(
    "TIFF that claims 65,535 tags of 4 GiB, named .png",
    lambda: exif(65535)[6:],
    f"{LEFT_OUT}png: more than 4,096 tags",
)
for _what, _tags, _why in (
    ("of 60,000x60,000", {256: 60000, 257: 60000}, "too many pixels"),
    ("of 6x6 in a tile of 65,520x65,520", {322: 65520, 323: 65520}, "too many pixels"),
    ("of 6x6 with a strip of 4 GiB, deflated", {259: 8, 279: 2**32 - 1}, "damaged image"),
    ("of 6x6 that names LZMA", {259: 34925}, "TIFF with compression 34925, not read: convert"),
    ("of 6x6 with 65,535 samples a pixel", {277: 65535}, "TIFF with 65535 samples a pixel"),
    ("of 6x6 with a palette of 1 GiB", {320: (3, 1 << 29, 8)}, "more than 1 MiB of tags"),
):
    picture(
        f"TIFF {_what}",
        lambda tags=_tags: tiff(tags),  # type: ignore[misc]
        f"{LEFT_OUT}tif: {_why}",
        ending="tif",
    )
picture(
    "TIFF with 4,000 tags, each of the same 40 MiB",
    lambda: tiff({65000 - n: (7, 40 << 20, 8) for n in range(4000)}, more=40 << 20),
    BOTH,
    ending="tif",
    megabytes=300,
)
picture("TIFF whose next page is itself", lambda: tiff({}, follows=True), BOTH, ending="tif")
picture(
    "TIFF of 6x6 whose strip is 1 GiB of zeros, deflated",
    lambda: tiff({259: 8}, strip=zeros(1 << 30)),
    BOTH,
    ending="tif",
)
picture(
    "pickle that runs a command, named .png",
    lambda: pickle.dumps(Touches()),
    f"{LEFT_OUT}png: not an image",
)
picture("no bytes at all", lambda: b"", f"{LEFT_OUT}png: empty file")
