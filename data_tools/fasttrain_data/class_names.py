"""Names and numbers for the classes of a source: IDX files have numbers alone, and a folder of test
images may lack a class that the training images have.

names = read_names("names.txt")                 # or "T-shirt/top,Trouser,Pullover"
names = read_names("data/train")                # those of another shard set
name_classes(source, names)
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fasttrain_data.errors import DataError
from fasttrain_data.index import load_index
from fasttrain_data.sources.base import Source

__all__ = ["name_classes", "read_names"]

MAX_FILE_BYTES = 16 << 20


def read_names(given: str) -> list[str]:
    """The names in a text file, one a line, of a shard set, or in a list with commas.

    Raises DataError.
    """
    if os.path.isdir(given):
        return [info.name for info in load_index(given).classes]
    if not os.path.isfile(given):
        if "," not in given and (given.endswith((".txt", ".csv")) or os.sep in given):
            raise DataError(f"--class-names {given}: neither a file nor a shard set")
        return [name.strip() for name in given.split(",")]
    try:
        with Path(given).open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--class-names {given} cannot be read as a text file: {error}") from error
    if len(text) > MAX_FILE_BYTES:
        raise DataError(f"--class-names {given} is larger than {MAX_FILE_BYTES >> 20} MiB")
    return [line.strip() for line in text.splitlines() if line.strip()]


def name_classes(source: Source, names: list[str]) -> None:
    """Number the classes as `names` has them, where all of theirs are among these; else give them
    other names, in label order. Raises DataError."""
    number = {name: label for label, name in enumerate(names)}
    for label, name in enumerate(names):
        if not 1 <= len(name) <= 1000 or not name.isprintable():
            raise DataError(f"--class-names: {name[:40]!r} cannot be a name")
        if number[name] != label:
            raise DataError(f"--class-names has {name!r} twice")
    if set(source.classes) <= set(number):
        order = np.asarray([number[name] for name in source.classes], np.int64)
        source.labels, source.classes = order[np.asarray(source.labels)], names
        return
    if len(names) != len(source.classes):
        raise DataError(
            f"--class-names has {len(names)} names, the source has {len(source.classes)} classes"
        )
    source.classes = names
