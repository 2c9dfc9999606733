"""Shard sets whose index vouches for a hostile shard: `fasttrain-data verify` reads them as
training does."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fasttrain_data.records import encode_image
from tests.hostile.archives import pax, sparse
from tests.hostile.cases import INFO, VERIFY, case
from tests.hostile.files import chunk, image, member, npy, png, riff, riff_chunk, shard_set
from tests.hostile.pictures import SECOND_HEADER, Touches, text_chunk

__all__: list[str] = []

PNG = encode_image(np.zeros((6, 6, 3), np.uint8))
LABEL = member("0.cls", b"0")


def shard(what: str, expect: str, *members: bytes, **changes: Any) -> None:
    """A shard of these members."""
    case("shard", what, expect=expect, command=VERIFY)(
        lambda folder: shard_set(folder / "in", *members, **changes)
    )


def refused(what: str, expect: str, **fields: Any) -> None:
    """A member that is not read."""
    name, data = fields.pop("name", "0.png"), fields.pop("data", PNG)
    shard(what, expect, member(name, data, **fields), LABEL)


NAME = "is not one of a shard's"
shard("sparse file (GNU) that claims 6 GiB", "is a sparse file", sparse(6 << 30), LABEL)
shard("sparse file (extended header)", "is an extended header", pax(GNU_sparse_size=6 << 30))
refused("long-name header", "is a long-name header", kind=b"L")
refused("symbolic link", "is a symbolic link", kind=b"2", link=b"/etc/passwd", data=b"")
refused("hard link", "is a hard link", kind=b"1", link=b"1.png", data=b"")
refused("device", "is a character device", kind=b"3", data=b"")
refused("FIFO", "is a FIFO", kind=b"6", data=b"")
refused("`../../x.png`", NAME, name="../../x.png")
refused("`/etc/x.png`", NAME, name="/etc/x.png")
refused("`pipe:touch pwned;.png`", NAME, name="pipe:touch pwned;.png")
refused("name of escape codes", NAME, name="\x1b[2J\n.png")
for _ending in ("pickle", "pyd", "pth"):
    refused(
        f"pickle that runs a command, named .{_ending}",
        NAME,
        name=f"0.{_ending}",
        data=pickle.dumps(Touches()),
    )
refused("member that claims 8 GiB", "more than the 67108864 allowed", size=(8 << 30) - 1)
refused("member that claims 64 MiB", "is truncated", size=64 << 20)
refused("size of -1", "has no plain size", size=b"-0000000001\0")
refused("size in base 256, 2^88 - 1", "has no plain size", size=b"\x80" + b"\xff" * 11)
refused(
    "label of 1 MB", "claims 1000000 bytes, more than the 16", name="0.cls", data=b"1" * 1_000_000
)
shard(
    "label of class 999,999,999",
    "has label 999999999, the index has 1 classes",
    member("0.png", PNG),
    member("0.cls", b"999999999"),
)


def record(what: str, expect: str, data: bytes, kind: str = "png") -> None:
    """A record that is another picture."""
    shard(what, expect, member(f"0.{kind}", data), LABEL, record=kind)


record("PNG of 60,000x60,000", "is 60000x60000, the index says 6x6", png(60000, 60000, data=b""))
record(
    "PNG with a second header, of 60,000x60,000",
    "is a damaged PNG image",
    png(6, 6, before=SECOND_HEADER),
)
record(
    "PNG with a zTXt chunk of 256 MiB of zeros",
    "is a damaged PNG image",
    png(6, 6, before=text_chunk(b"zTXt", 256 << 20)),
)
record("PNG of 16 bits", "does not have the 3 channels of 8 bits", png(6, 6, depth=16))
record("APNG", "is a damaged PNG image", png(6, 6, before=chunk(b"acTL", struct.pack(">II", 9, 0))))
record("pickle that runs a command", "is not a PNG image", pickle.dumps(Touches()))
record("JPEG", "is not a PNG image", image("JPEG"))
record(
    "WebP with an extended header",
    "is not a lossless WebP",
    riff(riff_chunk(b"VP8X", bytes(10))),
    "webp",
)
record(
    "WebP of 16,384x16,384",
    "is 16384x16384, the index says 6x6",
    riff(riff_chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20))),
    "webp",
)


def raw(what: str, expect: str, images: bytes, labels: bytes, *more: bytes) -> None:
    """A raw record."""
    members = (member("0.images.npy", images), member("0.labels.npy", labels), *more)
    shard(what, expect, *members, record="raw", images=max(1, 2 * bool(more)))


def header(text: bytes) -> bytes:
    """A NumPy header that says anything."""
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text + b"\n"


PIXELS = npy("|u1", np.zeros((1, 3, 6, 6), np.uint8))
ZERO = npy("<i4", np.zeros(1, np.int32))
HEADER = b"{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"
raw(
    "array of 10^18 images", "is not a |u1 array", header(HEADER % (b"|u1", b"1" + b"0" * 18)), ZERO
)
raw(
    "array of 64 images in 100 bytes",
    "not those of an array of [64, 3, 6, 6]",
    header(HEADER % (b"|u1", b"64, 3, 6, 6")) + bytes(100),
    ZERO,
)
raw(
    "array of objects, a pickle that runs a command",
    "is not a |u1 array",
    header(HEADER % (b"|O", b"1,")) + pickle.dumps(Touches()),
    ZERO,
)
raw(
    "header that is Python code",
    "is not a |u1 array",
    header(b"{'descr': __import__('os').system('touch pwned')}"),
    ZERO,
)
raw(
    "labels without a shape",
    "is not a <i4 array",
    PIXELS,
    header(HEADER % (b"<i4", b" ")) + bytes(4),
)
raw(
    "labels of 5 bytes",
    "not those of an array of [1]",
    PIXELS,
    header(HEADER % (b"<i4", b"1,")) + bytes(5),
)
raw(
    "labels of class -1",
    "has label -1, the index has 1 classes",
    PIXELS,
    npy("<i4", np.array([-1], np.int32)),
)
raw(
    "the same key twice",
    "the key 0+0 occurs twice",
    PIXELS,
    ZERO,
    member("0.images.npy", PIXELS),
    member("0.labels.npy", ZERO),
)


@case("shard", "the same key twice, as a source", expect="a key occurs twice")
def _(folder: Path) -> None:
    members = [member("0.images.npy", PIXELS), member("0.labels.npy", ZERO)] * 2
    shard_set(folder / "in", *members, record="raw", images=2)


def index(what: str, expect: str, command: tuple[str, ...] = VERIFY, **changes: Any) -> None:
    """A sound shard and an index that lies."""

    def make(folder: Path) -> None:
        shard_set(folder / "in", member("0.png", PNG), LABEL)
        path = folder / "in/index.json"
        table = json.loads(path.read_text())
        for key, value in changes.items():
            where, _, rest = key.partition("__")
            if rest:
                table[where][0][rest] = value
            else:
                table[where] = value
        path.write_text(json.dumps(table))

    case("index.json", what, expect=expect, command=command)(make)


index(
    "10^12 images in a shard of 3 KB",
    "bytes cannot hold its images",
    shards__images=10**12,
    images=10**12,
    classes__images=10**12,
)
index("shard of 2^63 bytes", "its index says 9223372036854775808", shards__bytes=2**63)
index("shard named `pipe:touch pwned`", "shards.0.name", shards__name="pipe:touch pwned")
index("shard named `../../etc/passwd`", "shards.0.name", shards__name="../../etc/passwd")
index("images of 1,000,000 pixels a side", "resolution", resolution=10**6)
index("images of 8,192 pixels a side", "is 6x6, the index says 8192x8192", resolution=8192)
index("class name of escape codes", "printable characters only", INFO, classes__name="\x1b[2J")
index("a number of 4,000 digits", "is not a valid index", images=10**4000)
index("NaN images", "images: Input should be a valid integer", images=float("nan"))


@case("index.json", "the same keys twice", expect="the content_sha256", command=VERIFY)
def _(folder: Path) -> None:
    path = shard_set(folder / "in", member("0.png", PNG), LABEL) / "index.json"
    text = path.read_text()
    path.write_text(text[:-1] + ', "resolution": 7, "resolution": 6}')


@case("shard", "link to /dev/zero", expect="missing shard in/shard-000000.tar", command=VERIFY)
def _(folder: Path) -> None:
    shard_set(folder / "in", member("0.png", PNG), LABEL)
    (folder / "in/shard-000000.tar").unlink()
    (folder / "in/shard-000000.tar").symlink_to("/dev/zero")


@case(
    "shard", "FIFO, which never answers", expect="missing shard in/shard-000000.tar", command=VERIFY
)
def _(folder: Path) -> None:
    shard_set(folder / "in", member("0.png", PNG), LABEL)
    (folder / "in/shard-000000.tar").unlink()
    os.mkfifo(folder / "in/shard-000000.tar")
