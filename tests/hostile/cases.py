"""What a case is. A module of cases makes them with `case` above a function that builds the files:

@case("picture", "a pickle named .png", expect="not an image")
def _(folder: Path) -> None:
    write(folder / "in/a/evil.png", pickle.dumps(...))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.files import image

__all__ = [
    "CASES",
    "CONVERT",
    "GROUPS",
    "INDEX",
    "INFO",
    "VERIFY",
    "Case",
    "Make",
    "case",
    "picture",
]
__all__ += ["write"]

Make = Callable[[Path], object]
GROUPS = ["picture", "folder", "dataset.json", "emoji", "tar", "zip", "IDX", "CIFAR-10", "parquet"]
GROUPS += ["WebDataset", "shard", "index.json"]
CONVERT = ("convert", "in", "out", "--resolution", "8", "--max-bad", "1", "--workers", "1")
VERIFY = ("verify", "in", "--workers", "1")
INFO = ("info", "in")
INDEX = ("index", "in", "--out", "out", "--workers", "1")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Files that were made to do harm, and the command that a user would run on them.

    Attributes:
        group, what: where it stands in the table, and what it is.
        make: writes the files, into `in` as a rule.
        command: what `fasttrain-data` is called with, in the folder.
        expect: what the first line that it prints must hold.
        status: its exit status.
        megabytes: what it may allocate.
    """

    group: str
    what: str
    make: Make
    command: tuple[str, ...]
    expect: str
    status: int
    megabytes: int


CASES: list[Case] = []


def case(
    group: str,
    what: str,
    *,
    expect: str,
    command: tuple[str, ...] = CONVERT,
    status: int = 2,
    megabytes: int = 128,
) -> Callable[[Make], Make]:
    """Makes a case of the function below."""

    def register(make: Make) -> Make:
        CASES.append(
            Case(
                group=group,
                what=what,
                make=make,
                command=command,
                expect=expect,
                status=status,
                megabytes=megabytes,
            )
        )
        return make

    return register


def write(path: Path, data: bytes) -> None:
    """A file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def picture(
    what: str,
    data: Callable[[], bytes],
    expect: str,
    *,
    ending: str = "png",
    crop: str = "center",
    megabytes: int = 128,
) -> None:
    """A picture beside a sound one, in a folder that is converted."""

    def make(folder: Path) -> None:
        write(folder / "in/a/sound.png", image())
        write(folder / f"in/a/evil.{ending}", data())

    command = (*CONVERT, "--crop", crop)
    case("picture", what, expect=expect, command=command, status=0, megabytes=megabytes)(make)
