"""What a file of labels says, whatever its format, and which column of a table holds the label.

label_column(["text", "label"], "metadata.csv", asked=None)         # "label"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fasttrain_data.errors import DataError, shown

__all__ = ["LabelTable", "Labels", "label_column"]

Labels = dict[str, str | int]
"""Class name or number by the name of an image."""
LABEL_COLUMNS: tuple[str, ...] = (
    "label",
    "labels",
    "class",
    "cls",
    "target",
    "category",
    "class_name",
    "class_id",
)
"""Columns that hold the label when nobody says which one does."""
LABEL_COLUMNS += ("class_label", "label_name", "label_id", "category_id", "category_name")


class LabelTable(NamedTuple):
    """What a file says.

    Attributes:
        where: the file, in a message.
        labels: by the name that the file has for an image; empty without a column of labels.
        classes: all classes in order, where the file's publisher fixed it.
        exact: names are paths, and all of them must be there.
        single: the file says that there are no classes.
        hint: what a user can do who wanted labels of this file.
        notes: lines that a user should see.
        folder: where the file lies, with a slash.
        anywhere: names belong to images wherever the file lies.
        numbered: names are numbers, which images' names end in.
    """

    where: str
    labels: Labels
    classes: Sequence[str] | None = None
    exact: bool = False
    single: bool = False
    hint: str = ""
    notes: Sequence[str] = ()
    folder: str = ""
    anywhere: bool = False
    numbered: bool = False


def label_column(
    columns: Sequence[str], where: str, asked: str | None, declared: Sequence[str] = ()
) -> str | None:
    """The one column of labels: the one asked for, the one declared as such, or the one whose name
    says so; None without. Raises DataError for several, or one that is not there."""
    if asked is not None:
        if asked not in columns:
            raise DataError(
                f"--label-column is {shown(asked)}: {where} has {', '.join(map(shown, columns))}"
            )
        return asked
    known = list(declared) or [n for n in columns if n.strip().lower() in LABEL_COLUMNS]
    if len(known) > 1:
        raise DataError(
            f"{where} has several columns of labels, {', '.join(map(shown, known))}: choose one "
            f"with --label-column {shown(known[0])}"
        )
    return known[0] if known else None
