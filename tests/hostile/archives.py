"""Tar and zip files of pictures."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.hostile.cases import case, write
from tests.hostile.files import image, member, tar, zeros, zip_of

__all__: list[str] = []

SOUND = member("a/sound.png", image())
BOTH = "2 images of 8x8x3"


def archive(what: str, expect: str, *members: bytes, status: int = 0, end: bool = True) -> None:
    """A tar with a sound picture and others."""

    def make(folder: Path) -> None:
        content = tar(SOUND, *members)
        write(folder / "in.tar", content if end else content[:-1024])

    command = ("convert", "in.tar", "out", "--resolution", "8", "--max-bad", "4", "--workers", "1")
    case("tar", what, expect=expect, status=status, command=command)(make)


def sparse(size: int) -> bytes:
    """A GNU sparse member of 512 bytes that claims another size."""
    patches = {386: b"00000000000\0" + b"00000001000\0", 483: f"{size:011o}\0".encode()}
    return member("a/x.png", b"x" * 512, kind=b"S", magic=b"ustar  \0", patches=patches)


def pax(**headers: object) -> bytes:
    """An extended header and the member that it speaks of."""
    lines = b""
    for key, value in headers.items():
        line = f" {key.replace('_', '.')}={value}\n"
        length = len(line) + len(str(len(line) + 2))
        lines += f"{length}{line}".encode()
    return member("PaxHeader/x.png", lines, kind=b"x") + member("a/x.png", image())


archive(
    "sparse file (GNU) of 512 bytes that claims 6 GiB",
    "left out: in.tar/a/x.png: is a sparse file",
    sparse(6 << 30),
)
archive(
    "sparse file (extended header) that claims 6 GiB",
    "left out: in.tar/a/x.png: is a sparse file",
    pax(GNU_sparse_size=6 << 30, GNU_sparse_map="0,1"),
)
archive(
    "extended header that names /etc/x.png",
    "has images both beside and inside",
    pax(path="/etc/x.png"),
    status=2,
)
archive(
    "long-name header that claims 8 GiB",
    "'a/x.png' is larger than the file",
    member("a/x.png", b"", kind=b"L", size=(8 << 30) - 1),
    status=2,
)
archive("`../../x.png`", BOTH, member("../../x.png", image()))
archive(
    "`/etc/cron.d/x.png`",
    "has images both beside and inside class folders",
    member("/etc/cron.d/x.png", image()),
    status=2,
)
archive(
    "`pipe:touch pwned;.png`",
    "has images both beside and inside",
    member("pipe:touch pwned;.png", image()),
    status=2,
)
archive(
    "name of a newline and escape codes",
    r"in.tar/a/\x1b[2J\n.png: not an image",
    member("a/\x1b[2J\n.png", b"x"),
)
archive(
    "name of 255 bytes that are no text",
    BOTH,
    member(b"\xff" * 96 + b".png", image(), prefix=b"\xfe" * 155),
)
archive(
    "symbolic link, hard link, device and FIFO named .png",
    "left out: in.tar/a/1.png: is a hard link",
    member("a/2.png", kind=b"2", link=b"/etc/passwd"),
    member("a/1.png", kind=b"1", link=b"/etc/passwd"),
    member("a/3.png", kind=b"3"),
    member("a/6.png", kind=b"6"),
)
archive(
    "member that claims 8 GiB",
    "'a/x.png' is larger than the file",
    member("a/x.png", size=(8 << 30) - 1),
    status=2,
)
archive(
    "member of 65 MiB",
    "left out: in.tar/a/x.png: more than 64 MiB",
    member("a/x.png", bytes(65 << 20)),
)
archive(
    "size of -1",
    "'a/x.png' is larger than the file",
    member("a/x.png", size=b"-0000000001\0"),
    status=2,
)
archive(
    "size in base 256, 2^88 - 1",
    "'a/x.png' is larger than the file",
    member("a/x.png", size=b"\x80" + b"\xff" * 11),
    status=2,
)
archive("wrong checksum", "damaged header", b"y" + member("a/x.png", image())[1:], status=2)
archive(
    "no end mark, cut in a member",
    "'a/x.png' is larger than the file",
    member("a/x.png", bytes(4096))[:2000],
    status=2,
    end=False,
)
archive(
    "100,000 members without bytes",
    "out: 1 images of 8x8x3",
    b"".join(member(f"a/{n}.txt") for n in range(100_000)),
)
archive(
    "members named .pickle, .pth, .pyd",
    "out: 1 images of 8x8x3",
    *(member(f"a/x.{e}", b"cos\nsystem\n") for e in ("pickle", "pth", "pyd")),
)


def packed(
    what: str,
    expect: str,
    change: Callable[[bytearray, int, int], bytearray | None],
    *,
    status: int = 0,
    members: Mapping[str, bytes] | None = None,
    megabytes: int = 128,
) -> None:
    """A zip whose last member is changed: `change(data, place of its entry, place of the end)`."""

    def make(folder: Path) -> None:
        data = zip_of(members or {"a/sound.png": image(), "a/x.png": image()}, zipfile.ZIP_DEFLATED)
        places = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
        write(folder / "in.zip", bytes(change(data, *places) or data))

    command = ("convert", "in.zip", "out", "--resolution", "8", "--max-bad", "1", "--workers", "1")
    case("zip", what, expect=expect, status=status, command=command, megabytes=megabytes)(make)


def put(offset: int, form: str, *values: int) -> Callable[[bytearray, int, int], None]:
    """Overwrites fields of the last entry."""
    return lambda data, entry, _: struct.pack_into(form, data, entry + offset, *values)


def bomb(claimed: int) -> Callable[[bytearray, int, int], bytearray]:
    """The last member is a GiB of zeros; its entry claims another size."""

    def change(data: bytearray, entry: int, end: int) -> bytearray:
        raw = zeros(1 << 30)[2:-4]
        local = bytearray(data[data.rindex(b"PK\x03\x04") : entry][:37])
        first = data[: data.rindex(b"PK\x03\x04")]
        struct.pack_into("<II", data, entry + 20, len(raw), claimed)
        struct.pack_into("<I", data, end + 16, len(first) + len(local) + len(raw))
        return first + local + raw + data[data.index(b"PK\x01\x02") :]

    return change


def overlapping(data: bytearray, _: int, end: int) -> bytearray:
    """1,000 entries of one member."""
    entry = data[data.index(b"PK\x01\x02") : data.rindex(b"PK\x01\x02")]
    at = entry.index(b"a/sound.png")
    rows = []
    for number in range(1000):
        row = bytearray(entry)
        row[at : at + 11] = b"a/s%04d.png" % number
        rows.append(bytes(row))
    table = b"".join(rows)
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 1000, 1000, len(table))
    return data[: data.index(b"PK\x01\x02")] + table + tail


def zip64(offset: int, value: int) -> Callable[[bytearray, int, int], bytearray]:
    """The last entry's size or offset stands in a zip64 field."""

    def change(data: bytearray, entry: int, end: int) -> bytearray:
        struct.pack_into("<I", data, entry + offset, 0xFFFFFFFF)
        struct.pack_into("<H", data, entry + 30, 12)
        name = entry + 46 + len("a/x.png")
        data[name:name] = struct.pack("<HHQ", 1, 8, value)
        (size,) = struct.unpack_from("<I", data, end + 12 + 12)
        struct.pack_into("<I", data, end + 12 + 12, size + 12)
        return data

    return change


def fewer(data: bytearray, _: int, end: int) -> None:
    struct.pack_into("<HHII", data, end + 8, 65535, 65535, 0xFFFFFFF0, 0)


def renamed(name: bytes) -> Callable[[bytearray, int, int], None]:
    def change(data: bytearray, entry: int, _: int) -> None:
        data[entry + 46 : entry + 53] = name

    return change


def corrupt(data: bytearray, entry: int, _: int) -> None:
    struct.pack_into("<I", data, entry + 16, zlib.crc32(b"another"))


X = "left out: in.zip/a/x.png: "
packed("1,000 entries of one member, overlapping", "out: 1,000 images of 8x8x3", overlapping)
packed("member of 1 GiB of zeros, as its entry says", f"{X}more than 64 MiB", bomb(1 << 30))
packed("member of 1 GiB of zeros that claims 100 bytes", f"{X}damaged zip member", bomb(100))
packed("member that claims 4 GiB", f"{X}more than 64 MiB", put(24, "<I", 2**32 - 2))
packed("zip64 size of 2^64 - 1", f"{X}more than 64 MiB", zip64(24, 2**64 - 1))
packed("zip64 offset of 2^64 - 1", f"{X}cut short", zip64(42, 2**64 - 1))
packed("offset past the end", f"{X}cut short", put(42, "<I", 2**31))
packed("wrong checksum", f"{X}damaged zip member", corrupt)
packed("encrypted", f"{X}encrypted", put(8, "<H", 1))
packed("LZMA, which may ask for 4 GiB", f"{X}compressed by another method", put(10, "<H", 14))
packed("directory that claims 65,535 entries and 4 GiB", "is not a sound zip file", fewer, status=2)
packed(
    "`../x.png` and `/x.png`",
    "has images both beside and inside",
    lambda *_: None,
    status=2,
    members={"../x.png": image(), "/x.png": image()},
)
packed("name of an escape code", "out: 2 images of 8x8x3", renamed(b"a/\x1b.png"), status=0)
packed(
    "a zip in a zip in a zip",
    "no images in in.zip",
    lambda *_: None,
    status=2,
    members={"x.zip": bytes(zip_of({"x.zip": bytes(zip_of({"x.png": image()}))}))},
)
packed(
    "dataset.json of 64 MiB of zeros",
    "is not valid JSON",
    lambda *_: None,
    status=2,
    megabytes=200,
    members={"a/sound.png": image(), "dataset.json": bytes(64 << 20)},
)
packed(
    "members named .pickle, .pth, .pyd",
    "out: 1 images of 8x8x3",
    lambda *_: None,
    members={"a/sound.png": image()}
    | {f"a/x.{e}": b"cos\nsystem\n" for e in ("pickle", "pth", "pyd")},
)
