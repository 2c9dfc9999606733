"""A few of the same files through what is used elsewhere: `webdataset` with `.decode()`, and
Python's `tarfile`. Each is run, by a process of its own; the harm is an empty file, or a GiB of
zeros.

    compare(folder) -> [{"what": ..., "reader": ..., "outcome": ..., "megabytes": ...}, ...]
"""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.hostile.archives import sparse
from tests.hostile.files import image, member, tar
from tests.hostile.judge import in_a_child, memory_held
from tests.hostile.pictures import Touches

__all__ = ["compare"]

GIB = 1 << 30


def sparse_tarfile() -> str:
    Path("x.tar").write_bytes(tar(sparse(GIB)))
    with tarfile.open("x.tar") as file:
        content = file.extractfile(file.next() or "")
        assert content is not None
        return f"{len(content.read()):,} bytes read from a file of {os.path.getsize('x.tar'):,}"


def sparse_webdataset() -> str:
    import webdataset

    Path("x.tar").write_bytes(tar(sparse(GIB)))
    (sample,) = webdataset.WebDataset("x.tar", shardshuffle=False)
    return f"{len(sample['png']):,} bytes read from a file of {os.path.getsize('x.tar'):,}"


def pickle_webdataset() -> str:
    import webdataset

    Path("x.tar").write_bytes(tar(member("0.pyd", pickle.dumps(Touches()))))
    list(webdataset.WebDataset("x.tar", shardshuffle=False).decode())
    return _ran()


def pipe_webdataset() -> str:
    import webdataset

    with suppress(tarfile.ReadError):  # the command gives no tar
        list(webdataset.WebDataset("pipe:touch pwned", shardshuffle=False))
    return _ran()


def outside_tarfile() -> str:
    os.mkdir("below")
    Path("x.tar").write_bytes(tar(member("../x.png", image())))
    try:
        with tarfile.open("x.tar") as file:
            file.extractall("below")
    except tarfile.TarError as error:
        return f"refused: {error}"
    return "a file written outside the folder" if Path("x.png").exists() else "nothing written"


def _ran() -> str:
    return "the command ran" if Path("pwned").exists() else "nothing ran"


ROWS: list[tuple[str, str, Callable[[], str]]] = [
    ("a sparse file that claims 1 GiB", "`tarfile`, `extractfile`", sparse_tarfile),
    ("the same", "`webdataset`", sparse_webdataset),
    ("a pickle that runs a command, named .pyd", "`webdataset`, `.decode()`", pickle_webdataset),
    ("a shard named `pipe:touch pwned`", "`webdataset`", pipe_webdataset),
    ("a member named `../x.png`", "`tarfile`, `extractall`", outside_tarfile),
]


def compare(folder: Path) -> list[dict[str, Any]]:
    """Run all; `folder` is a new one. By a child, because `webdataset` imports torch."""
    folder.mkdir()
    return in_a_child(lambda: [_row(folder / str(n), *row) for n, row in enumerate(ROWS)])


def _row(folder: Path, what: str, reader: str, run: Callable[[], str]) -> dict[str, Any]:
    import webdataset  # noqa: F401

    folder.mkdir()

    def measured() -> list[Any]:
        os.chdir(folder)
        before = memory_held()
        outcome = run()
        return [outcome, round((memory_held() - before) / 1e3)]

    outcome, megabytes = in_a_child(measured)
    return {"what": what, "reader": reader, "outcome": outcome, "megabytes": megabytes}
