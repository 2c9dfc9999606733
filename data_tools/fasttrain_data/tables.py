"""JSON that may be hostile: of three bytes, `[],`, a parser makes an object of sixty. So values are
counted before anything is parsed.

table = load_json(path)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fasttrain_data.errors import DataError

__all__ = ["MAX_JSON_BYTES", "load_json", "read_json"]

MAX_JSON_BYTES = 64 << 20
MAX_JSON_VALUES = 8 << 20


def load_json(path: Path) -> Any:
    """The value of a JSON file. Raises DataError, OSError."""
    with path.open("rb") as file:
        return read_json(file.read(MAX_JSON_BYTES + 1), path)


def read_json(text: bytes, name: object, *, most: int = MAX_JSON_VALUES) -> Any:
    """The value of a JSON text of 64 MiB and `most` values at most. Raises DataError."""
    if len(text) > MAX_JSON_BYTES:
        raise DataError(f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB")
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > most:
        raise DataError(f"{name} has more than {most} values")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not valid JSON") from error
