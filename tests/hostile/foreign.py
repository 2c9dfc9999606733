"""WebDataset's tars that strangers wrote, and indexes of such that lie: `fasttrain-data index`
reads them as training does."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from fasttrain_data.indexing import run_indexing
from tests.hostile.archives import pax, sparse
from tests.hostile.cases import case, write
from tests.hostile.files import image, member, tar
from tests.hostile.pictures import Touches

__all__: list[str] = []

COMMAND = ("index", "in.tar", "--out", "out", "--workers", "1")
SOUND = member("a.png", image()) + member("a.cls", b"0")
ONE, TWO = "1 images in 1 classes", "2 images in 2 classes"
DEEP = b"[" * 100_000


def sample(
    what: str, expect: str, *members: bytes, status: int = 2, end: bool = True, more: Any = ()
) -> None:
    """A tar with a sound sample and others."""

    def make(folder: Path) -> None:
        content = tar(SOUND, *members)
        write(folder / "in.tar", content if end else content[:-1024])

    case("WebDataset", what, expect=expect, status=status, command=(*COMMAND, *more))(make)


sample("sparse file (GNU) that claims 6 GiB", "1 is a sparse file", sparse(6 << 30), status=0)
sample(
    "sparse file (extended header) that claims 6 GiB",
    "1 is a sparse file",
    pax(GNU_sparse_size=6 << 30),
    status=0,
)
sample(
    "symbolic link, hard link, device and FIFO named .png",
    "left out: 4 (1 is a FIFO, 1 is a character device, 1 is a hard link, 1 is a symbolic link)",
    *(member(f"{kind}.png", kind=f"{kind}".encode(), link=b"/etc/passwd") for kind in (1, 2, 3, 6)),
    status=0,
)
sample("label that is a symbolic link", "not a label", member("b.cls", kind=b"2", link=b"/etc/x"))
sample("`../../x.png`", TWO, member("../../x.png", image()), member("../../x.cls", b"1"), status=0)
sample("`pipe:x.png`", TWO, member("pipe:x.png", image()), member("pipe:x.cls", b"1"), status=0)
sample(
    "pickle that runs a command, named .pyd and .pkl",
    "passed over, neither image nor label: 2 (1 .pkl, 1 .pyd)",
    *(member(f"a.{ending}", pickle.dumps(Touches())) for ending in ("pyd", "pkl")),
    status=0,
)
sample("pickle named .cls", "is not a text", member("a.cls", pickle.dumps(Touches(), 2)))
sample("label of escape codes", "is not a label", member("a.cls", b"\x1b[2J"))
sample("label of 2 MiB", "too long for a label", member("a.cls", bytes(2 << 20)))
sample("label of 999,999,999", ONE, member("a.cls", b"9" * 9), status=0)
sample("label of -1", "class numbers and names do not go", member("b.cls", b"-1"), member("b.png"))
sample(
    "JSON of 100,000 open brackets",
    "not valid JSON",
    member("a.json", DEEP[:99_000]),
    more=("--label-field", "x"),
)
sample(
    "JSON of a million values",
    "has more than 100000 values",
    member("a.json", b"[" + b"0," * 500_000 + b"0]"),
    more=("--label-field", "x"),
)
sample("member that claims 8 GiB", "larger than the file", member("b.png", size=(8 << 30) - 1))
sample("image of 65 MiB", "1 more than 64 MiB", member("b.png", bytes(65 << 20)), status=0)
sample("size of -1", "larger than the file", member("b.png", size=b"-0000000001\0"))
sample("wrong checksum", "damaged header", b"y" + member("b.png", image())[1:])
sample("cut in a member", "larger than the file", member("b.png", bytes(4096))[:2000], end=False)
sample("long-name header that claims 8 GiB", "larger than", member("b", kind=b"L", size=1 << 32))
sample(
    "key of 60,000 characters",
    "a key has more than 1000 characters",
    member("././@LongLink", b"k" * 60_000 + b".png", kind=b"L"),
    member("b.png", image()),
)
sample(
    "1,000 samples of one key",
    ONE,
    b"".join(member("a.png", image()) for _ in range(1000)),
    status=0,
)
sample("no image", "no images in", member("b.txt"), more=("--image-key", "x.jpg"))


def lying(what: str, expect: str, name: str, content: bytes) -> None:
    """A sound tar whose index was replaced."""

    def make(folder: Path) -> None:
        write(folder / "in.tar", tar(SOUND))
        run_indexing(str(folder / "in.tar"), out=folder / "out", workers=1)
        write(folder / "out" / name, content)

    case("WebDataset", what, expect=expect, command=COMMAND)(make)


lying("index of 100,000 open brackets", "not a valid index of tars", "index.json", DEEP)
lying("index without fields", "not a valid index of tars", "index.json", b"{}")
lying(
    "index of a million classes at fault",
    "not a valid index of tars",
    "index.json",
    json.dumps({"tars_version": 1, "classes": [0] * 1_000_000}).encode(),
)
