"""Folders, and the tables that lie in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.hostile.cases import INFO, case, write
from tests.hostile.files import image

__all__: list[str] = []


def sound(folder: Path) -> Path:
    """A class folder with a sound picture."""
    write(folder / "in/a/sound.png", image())
    return folder / "in/a"


@case(
    "folder",
    "link to a file outside",
    expect="left out: in/a/x.png: symbolic link out of the folder, see --follow-links",
    status=0,
)
def _(folder: Path) -> None:
    write(folder / "secret.png", image())
    (sound(folder) / "x.png").symlink_to("../../secret.png")


@case(
    "folder",
    "link to /dev/zero",
    expect="left out: in/a/x.png: symbolic link out of the folder, see --follow-links",
    status=0,
)
def _(folder: Path) -> None:
    (sound(folder) / "x.png").symlink_to("/dev/zero")


@case("folder", "link to itself", expect="left out: in/a/x.png: cannot be read", status=0)
def _(folder: Path) -> None:
    (sound(folder) / "x.png").symlink_to("x.png")


@case(
    "folder",
    "link to the folder above it",
    expect="left out: in/a/loop: symbolic link to a folder, see --follow-links",
    status=0,
)
def _(folder: Path) -> None:
    (sound(folder) / "loop").symlink_to("..")


@case("folder", "class folder that is a link", expect="is a symbolic link to a folder: follow it")
def _(folder: Path) -> None:
    sound(folder)
    (folder / "in/b").symlink_to("/etc")


@case(
    "folder",
    "FIFO, which never answers",
    expect="left out: in/a/x.png: not a regular file",
    status=0,
)
def _(folder: Path) -> None:
    os.mkfifo(sound(folder) / "x.png")


@case("folder", "FIFOs named like archives and tables", expect="no images in ")
def _(folder: Path) -> None:
    (folder / "in").mkdir()
    for name in ("x.tar", "dataset.json", "index.json", "emoji.json", "batches.meta"):
        os.mkfifo(folder / "in" / name)


@case("folder", "1,100 folders one in another", expect="are nested too deep")
def _(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(sound(folder))
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    os.chdir(here)


@case(
    "folder",
    "file name of a newline and escape codes",
    expect=r"left out: in/a/\x1b]0;owned\x07\x1b[2J\n.png: not an image",
    status=0,
)
def _(folder: Path) -> None:
    write(sound(folder) / "\x1b]0;owned\x07\x1b[2J\n.png", b"no image")


@case(
    "folder",
    "ending of a newline and escape codes",
    expect=r"passed over, no images by name: 1 (1 .\x1b[2j\n)",
    status=0,
)
def _(folder: Path) -> None:
    write(sound(folder) / "x.\x1b[2J\n", b"no image")


@case("folder", "class name of a newline and escape codes", expect=r"a class named '\\x1b[2Ja\\n'")
def _(folder: Path) -> None:
    write(folder / "in/\x1b[2Ja\n/x.png", image())


@case("folder", "class name that is no text", expect=r"a class named '\\udcff\\udcfe'")
def _(folder: Path) -> None:
    write(folder / "in" / os.fsdecode(b"\xff\xfe") / "x.png", image())


def table(what: str, text: bytes, expect: str) -> None:
    """A `dataset.json` beside a sound picture."""

    def make(folder: Path) -> None:
        sound(folder)
        write(folder / "in/dataset.json", text)

    case("dataset.json", what, expect=expect)(make)


table("100,000 lists one in another", b"[" * 100_000, "is not valid JSON")
table("15 million empty lists", b'{"labels": [' + b"[]," * 15_000_000, "more than 8388608 values")
table("65 MiB", b" " * (65 << 20), "is larger than 64 MiB")
table(
    "files outside",
    b'{"labels": [["../../secret.png", 0]]}',
    "names ../../secret.png, which is not there",
)
table("class 4,294,967,295", b'{"labels": [["a/sound.png", 4294967295]]}', "is not {")
table("class NaN", b'{"labels": [["a/sound.png", NaN]]}', "is not {")
table(
    "a number of 5,000 digits",
    b'{"labels": [["a/sound.png", ' + b"9" * 5000 + b"]]}",
    "is not valid JSON",
)
table(
    "a name of escape codes",
    json.dumps({"labels": [["\x1b[2J\n", 0]]}).encode(),
    r"names \x1b[2J\n, which",
)


@case("emoji", "images folder that is a link out of the package", expect="no readable images in in")
def _(folder: Path) -> None:
    write(folder / "secret/a.png", image())
    write(folder / "in/emoji.json", b'[{"image": "a.png", "category": "Faces"}]')
    (folder / "in/img/x").mkdir(parents=True)
    (folder / "in/img/x/64").symlink_to("../../../secret")


@case("emoji", "a category of escape codes", expect=r"a class named '\\x1b[2J'")
def _(folder: Path) -> None:
    write(folder / "in/img/x/64/a.png", image())
    write(folder / "in/emoji.json", b'[{"image": "a.png", "category": "\\u001b[2J"}]')


@case("emoji", "a category that is half a character", expect=r"a class named '\\ud800'")
def _(folder: Path) -> None:
    write(folder / "in/img/x/64/a.png", image())
    write(folder / "in/emoji.json", b'[{"image": "a.png", "category": "\\ud800"}]')


def index(what: str, text: bytes, expect: str) -> None:
    """An `index.json` alone."""
    case("index.json", what, expect=expect, command=INFO)(
        lambda folder: write(folder / "in/index.json", text)
    )


index("100,000 lists one in another", b'{"source": ' + b"[" * 100_000, "it is not valid JSON")
index("15 million empty objects", b'{"shards": [' + b"{}," * 15_000_000, "more than 2097152 values")
index(
    "500,000 shards without a name",
    b'{"shards": [' + b"{}," * 500_000 + b"{}]}",
    "is not a valid index",
)
case("index.json", "2,000,000 keys", expect="is not a valid index", command=INFO, megabytes=400)(
    lambda folder: write(
        folder / "in/index.json", json.dumps(dict.fromkeys(map(str, range(2_000_000)))).encode()
    )
)
index("keys of escape codes", b'{"\\u001b[2J\\n": 1}', "is not a valid index")
index("65 MiB", b" " * (65 << 20), "is larger than")
