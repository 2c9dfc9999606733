"""What names of files tell: whether they are images, and of which class.

by_folder(["cat/1.png", "dog/2.png"], "photos")         # (["cat", "dog"], [0, 1])
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fasttrain_data.endings import EXTENSIONS, LISTED
from fasttrain_data.errors import DataError
from fasttrain_data.samples import is_hidden

__all__ = ["by_ending", "by_folder", "class_order", "cleaned", "inside", "is_image"]

_WHOLE = re.compile(r"[0-9]{1,18}")
_AFTER = 10**18


def cleaned(name: str) -> str:
    """A name within an archive as a path with slashes: some tools for Windows write backslashes."""
    return name.replace("\\", "/").removeprefix("./")


def is_image(name: str) -> bool:
    """Whether a file is an image by its name; hidden ones are passed over."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_hidden(name)


def class_order(name: str) -> tuple[int, str]:
    """What class names are sorted by: whole numbers by value, before texts."""
    return (int(name) if _WHOLE.fullmatch(name) else _AFTER, name)


def by_ending(names: Iterable[str]) -> Counter[str]:
    """How many of the files are no images by their names, by ending, hidden ones aside."""
    others = (name for name in names if not is_image(name) and not is_hidden(name))
    bases = (os.path.basename(name) for name in others)
    return Counter(
        os.path.splitext(name)[1].lower() or name for name in bases if name != "dataset.json"
    )


def inside(names: Sequence[str]) -> list[str]:
    """Names without the one folder that a whole archive is often packed in."""
    first, last = min(names, default=""), max(names, default="")
    shared = os.path.commonprefix([first, last])  # noqa: RUF071  # of texts, cut at a slash
    shared = shared[: shared.rfind("/") + 1]
    if any("/" not in name[len(shared) :] for name in names):  # the last one is a class
        shared = shared[: shared.rfind("/", 0, max(0, len(shared) - 1)) + 1]
    return [name[len(shared) :] for name in names]


def by_folder(names: Sequence[str], title: str | Path) -> tuple[list[str], list[int]]:
    """Class names and the label of each file: by its first folder, or one class for a flat list.

    Raises DataError when there are none, or some are in folders and some are not.
    """
    tops = [sys.intern(name.partition("/")[0]) if "/" in name else "" for name in names]
    classes = sorted(set(tops), key=class_order)
    if not classes:
        raise DataError(f"no images in {title}: looked for {LISTED} files in class folders")
    if classes == [""]:
        return ["images"], [0] * len(names)
    if "" in classes:
        raise DataError(
            f"{title} has images both beside and inside class folders, {names[tops.index('')]} for "
            "one: move it into a class folder"
        )
    number = {name: label for label, name in enumerate(classes)}
    return classes, [number[top] for top in tops]
