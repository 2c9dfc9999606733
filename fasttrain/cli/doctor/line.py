"""A line of `fasttrain doctor`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from rich.console import Console
from rich.text import Text

__all__ = ["Line"]


STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Line:
    """One result. `remedy` says what to do; every `fail` has one."""

    status: Literal["ok", "warn", "fail"]
    what: str
    found: str
    remedy: str = ""


Check = Callable[[], Iterator[Line]]


def print_line(console: Console, line: Line) -> None:
    text = Text(f"{line.status:<5}", style=STYLES[line.status])
    text.append(f"{line.what:<19}", style="default").append(line.found, style="default")
    if line.remedy:
        text.append(f" -> {line.remedy}", style="default")
    console.print(text, soft_wrap=True)


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
