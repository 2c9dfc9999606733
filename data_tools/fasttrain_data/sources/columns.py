"""Which columns of a table hold images and labels, and what the table declares of them.

columns = read_columns(schema, Path("train.parquet"), asked=None)
columns.image, columns.label, columns.names         # "image", "label", ["cat", "dog"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fasttrain_data.errors import DataError, shown
from fasttrain_data.sources.label_table import label_column
from fasttrain_data.sources.selection import NO_LABELS
from fasttrain_data.tables import read_json

__all__ = ["Columns", "read_columns"]


class Columns(NamedTuple):
    """Of one table.

    Attributes:
        file: the table, in a message.
        image, label: names of columns; no label is one class.
        texts: whether labels are texts, else numbers.
        names: class names that the table declares (a Hugging Face ClassLabel).
        unused: the other columns.
    """

    file: str
    image: str
    label: str | None
    texts: bool
    names: list[str] | None
    unused: Sequence[str]

    def check_agrees(self, first: Columns) -> None:
        """Raises DataError unless labels mean the same in both."""
        for what, mine, other in (
            ("the column of images", self.image, first.image),
            ("the column of labels", self.label, first.label),
            ("labels that are", *("texts" if c.texts else "numbers" for c in (self, first))),
            ("the class names", self.names, first.names),
        ):
            if mine != other:
                raise DataError(
                    f"{self.file} and {first.file} disagree: {what} {_short(mine)} and "
                    f"{_short(other)}: convert them apart, or write them alike"
                )

    def notes(self, title: str) -> list[str]:
        """Lines that a user should see."""
        if not self.unused:
            return []
        unused = ", ".join(map(shown, self.unused))
        if self.label is None:
            return [
                f"{title}: no column is declared or named as labels, all images are one class; "
                f"columns not used, see --label-column: {unused}"
            ]
        return [f"{title}: labels are the column {shown(self.label)}; columns not used: {unused}"]


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value[:5]))}{', ...' if len(value) > 5 else ''}]"
    return "none" if value is None else shown(value)


def read_columns(schema: Any, file: Path, asked: str | None) -> Columns:
    """The columns of a table by its pyarrow schema. Raises DataError when that cannot be told."""
    import pyarrow

    def holds_images(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    images = [field.name for field in schema if holds_images(field.type)]
    image = next((name for name in ("image", "img", *images[:1]) if name in images), None)
    if image is None:
        raise DataError(
            f"{file} has no column of images, {{bytes, path}} or binary: its columns are "
            f"{', '.join(map(shown, schema.names[:20]))}"
        )
    rest = [name for name in schema.names if name != image]
    declared = _declared(schema, file)
    label = None
    if asked != NO_LABELS:
        label = label_column(rest, str(file), asked, [name for name in rest if name in declared])
    texts = False
    if label is not None:
        kind = schema.field(label).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        texts = any(
            test(kind) for test in (pyarrow.types.is_string, pyarrow.types.is_large_string)
        ) or bool(pyarrow.types.is_boolean(kind))
    names = None if texts or label is None else declared.get(label)
    return Columns(str(file), image, label, texts, names, [name for name in rest if name != label])


def _declared(schema: Any, file: Path) -> dict[str, list[str]]:
    """Names of the classes of each Hugging Face ClassLabel, from the table's metadata."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return {}
    try:
        features = read_json(stored, file)["info"]["features"].items()
    except (KeyError, TypeError, AttributeError):
        return {}
    found = {}
    for column, feature in features:
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and names and all(isinstance(n, str) and n for n in names):
            found[column] = _unique(names)
    return found


def _unique(names: Sequence[str]) -> list[str]:
    unique: list[str] = []
    seen: set[str] = set()
    for number, name in enumerate(names):
        unique.append(f"{name} ({number})" if name in seen else name)  # ImageNet has two cranes
        seen.add(name)
    return unique
