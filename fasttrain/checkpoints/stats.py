"""`stats.jsonl` of a run directory.

    stats = Stats(run, images)                     # truncated after `images`
    stats.write(images, {"loss/generator": 0.7})

`stats.jsonl` holds one JSON object a line with `images`, the means since the line before, and the
`crc32` of the line's text up to that, which detects a damaged line.
"""

from __future__ import annotations

import json
import math
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

from fasttrain.system.errors import UserError
from fasttrain.system.files import open_plain, read_bytes, write_atomic

__all__ = ["TIMES", "Stats", "is_number", "read_stats", "sealed"]


TIMES = frozenset({"seconds", "data/waiting"})
"""Values of a line of `stats.jsonl` that depend on time; two equal runs share all others."""

SEAL = "crc32"

MAX_STATS, MAX_LINES, MAX_LINE = 256 << 20, 1 << 20, 1 << 16
"""Limits: bytes of the file, its lines, bytes of a line."""


class Stats:
    """`stats.jsonl` of a run directory, truncated after `images` on resume."""

    def __init__(self, run: Path, images: int) -> None:
        self.path = run / "stats.jsonl"
        kept = [line for line in read_stats(run) if line["images"] <= images]
        write_atomic(self.path, "".join(map(sealed, kept)))
        descriptor = open_plain(self.path, os.O_WRONLY | os.O_APPEND)
        self.file = open(descriptor, "a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def write(self, images: int, values: dict[str, float]) -> None:
        self.file.write(sealed({"images": images, **values}))

    def close(self) -> None:
        self.file.close()


def sealed(line: dict[str, Any]) -> str:
    """A line of `stats.jsonl`: its last value is the CRC-32 of all before it."""
    text = json.dumps(line)[:-1]
    return f'{text}, "{SEAL}": "{zlib.crc32(text.encode()):08x}"}}\n'


def read_stats(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `stats.jsonl`, without their seals. Damaged ones are skipped and named
    by a warning, except for a last one that a crash truncated.

    Raises UserError when training did not write the file.
    """
    path = run / "stats.jsonl"
    try:
        content = read_bytes(path, MAX_STATS)
    except FileNotFoundError:
        return []
    *lines, rest = content.split(b"\n")
    if len(lines) > MAX_LINES:
        raise UserError(f"{path} has more than {MAX_LINES:,} lines")
    if _opened(rest) is not None or _opened(rest[:-1]) is not None:  # complete except for its end
        lines.append(rest)
    read = {number: _opened(line) for number, line in enumerate(lines, 1)}
    damaged = [str(number) for number, line in read.items() if line is None]
    if damaged:
        shown = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        warnings.warn(f"{path}: damaged lines are skipped: {shown}", stacklevel=2)
    return [line for line in read.values() if line is not None]


def _opened(text: bytes) -> dict[str, Any] | None:
    """The values of a line; None when it is damaged. Lines of earlier versions have no seal."""
    if len(text) > MAX_LINE or text.count(b"[") + text.count(b"{") > 1:
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    seal = line.pop(SEAL, None)
    whole = text[: -len(f', "{SEAL}": "01234567"}}')]
    if seal is not None and seal != f"{zlib.crc32(whole):08x}":
        return None
    images = line.get("images")
    known = type(images) is int and 0 <= images < 2**63
    return line if known and all(map(is_number, line.values())) else None


def is_number(value: Any) -> bool:
    """Whether a value from a file is a finite number, which can be drawn."""
    if type(value) not in (int, float):
        return False
    drawn = value == 0 or 1e-100 < abs(value) < 1e100
    return drawn or (type(value) is float and not math.isfinite(value))
