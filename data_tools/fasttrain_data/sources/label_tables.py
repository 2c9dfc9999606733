"""The formats of label files, each parsed to a table of names and labels.

    table = parse_labels("metadata.csv", "photos/metadata.csv", read, column="breed")
    table.labels                                # {"1.png": "beagle", ...}

EDM's `dataset.json`, Hugging Face's `metadata.jsonl` and `.csv`, any CSV or TSV with a column of
file names, CelebA's attributes, lists of a name and a label a line (Tiny ImageNet, Caffe),
ImageNet's validation ground truth, Oxford's `.mat`, COCO's JSON where an image has one category.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from fasttrain_data.errors import DataError, shown
from fasttrain_data.sources.matlab import flower_labels, ilsvrc_classes
from fasttrain_data.tables import MAX_JSON_BYTES, read_json

__all__ = ["LABEL_COLUMNS", "LabelTable", "label_column", "parse_labels"]

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
FILE_COLUMNS: tuple[str, ...] = (
    "file_name",
    "filename",
    "file",
    "path",
    "filepath",
    "image_path",
    "image",
    "img",
)
FILE_COLUMNS += ("image_id", "imageid", "image_name", "id", "name")
_WHOLE = re.compile(r"[0-9]{1,9}")

Read = Callable[[str], bytes]
Labels = dict[str, str | int]


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


def parse_labels(name: str, where: str, read: Read, column: str | None) -> LabelTable:
    """The table of a file by its name; `read(name)` is the content of a file beside it.

    Raises DataError.
    """
    data = read(name)
    if len(data) > MAX_JSON_BYTES:
        raise DataError(f"{where} is larger than {MAX_JSON_BYTES >> 20} MiB")
    if name.endswith(".mat"):
        return LabelTable(where, flower_labels(data, where), numbered=True)
    if name.endswith(".json"):
        return _json(read_json(data, where), where, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not a text in UTF-8") from error
    if name.endswith(".jsonl"):
        return _rows(_json_lines(text, where), where, column, exact=True)
    if name.endswith((".csv", ".tsv")):
        return _csv(text, where, column, exact=name == "metadata.csv")
    return _list(text, where, read, column)


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
    known = list(declared) or [name for name in columns if name.lower() in LABEL_COLUMNS]
    if len(known) > 1:
        raise DataError(
            f"{where} has several columns of labels, {', '.join(map(shown, known))}: choose one "
            f"with --label-column {shown(known[0])}"
        )
    return known[0] if known else None


def _json(table: Any, where: str, name: str) -> LabelTable:
    if name != "dataset.json" and isinstance(table, dict) and "annotations" in table:
        return _coco(table, where)
    rows = table.get("labels") if isinstance(table, dict) else ...
    if rows is None:
        return LabelTable(where, {}, single=True)
    wrong = DataError(
        f'{where} is not {{"labels": [[file, class number], ...]}}: correct or remove it'
    )
    if not isinstance(rows, list) or not rows:
        raise wrong
    labels: Labels = {}
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
            raise wrong
        if type(row[1]) is not int or not 0 <= row[1] < 1_000_000:
            raise wrong
        labels[row[0].replace("\\", "/").removeprefix("./")] = row[1]
    return LabelTable(where, labels, exact=True)


def _coco(table: Mapping[str, Any], where: str) -> LabelTable:
    """One category an image, by name where there are names."""
    try:
        files = {row["id"]: row["file_name"] for row in table["images"]}
        names = {row["id"]: str(row["name"]) for row in table.get("categories", ())}
        labels: Labels = {}
        for row in table["annotations"]:
            file, category = files[row["image_id"]], row["category_id"]
            label = names.get(category, category)
            if labels.setdefault(file, label) != label:
                raise DataError(
                    f"{where} has objects of several categories in {shown(file)}: give each image "
                    "one class, by folders or a CSV, or take --label-column none"
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is not COCO's JSON: images, annotations, categories") from error
    if not all(isinstance(file, str) and type(v) in (str, int) for file, v in labels.items()):
        raise DataError(f"{where} is not COCO's JSON: images, annotations, categories")
    classes = list(dict.fromkeys(names.values())) if names else None
    return LabelTable(where, labels, classes)


def _json_lines(text: str, where: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = read_json(line.encode(), f"{where}: line {number}")
            if not isinstance(row, dict):
                raise DataError(f"{where}: line {number} is not an object with a file_name")
            rows.append(row)
    return rows


def _csv(text: str, where: str, column: str | None, *, exact: bool) -> LabelTable:
    head = text.partition("\n")[0]
    mark = max("\t;,", key=head.count)
    try:
        rows = list(csv.DictReader(io.StringIO(text), delimiter=mark, strict=True))
    except csv.Error as error:
        raise DataError(f"{where} is not a table with a line of column names: {error}") from error
    rows = [{key or "": value or "" for key, value in row.items()} for row in rows]  # of short ones
    if rows and {"ImageId", "PredictionString"} == rows[0].keys():  # ImageNet's on Kaggle
        pairs = ((row["ImageId"], row["PredictionString"].split()[:1]) for row in rows)
        return LabelTable(where, {name: first[0] for name, first in pairs if first})
    return _rows(rows, where, column, exact=exact)


def _rows(
    rows: Sequence[Mapping[str, Any]], where: str, column: str | None, *, exact: bool
) -> LabelTable:
    if not rows:
        raise DataError(f"{where} has no rows")
    columns = list(rows[0])
    lower = {name.lower(): name for name in columns}
    file = next((lower[name] for name in FILE_COLUMNS if name in lower), columns[0])
    if exact and "file_name" not in lower:
        raise DataError(f"{where} has no column file_name: its columns are {', '.join(columns)}")
    rest = [name for name in columns if name != file]
    if len(rest) > 10 and column is None and {row[rest[0]] for row in rows[:100]} <= {"1", "-1"}:
        return LabelTable(where, {}, single=True, notes=[_attributes(rest, where)])
    label = label_column(rest, where, column)
    unused = [name for name in rest if name != label]
    notes = [f"{where}: columns not used: {_some(unused)}"] if unused else []
    if label is None:
        hint = f"{where} has no column of labels: choose one with --label-column ({_some(rest)})"
        return LabelTable(where, {}, hint=hint if rest else "", notes=())
    labels: Labels = {}
    for number, row in enumerate(rows, 2):
        name, value = row.get(file), row.get(label)
        sound = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
        if not isinstance(name, str) or not sound:
            raise DataError(
                f"{where}: row {number} has no {file if not isinstance(name, str) else label} that "
                f"is a number or a text: {shown(value)[:80]}"
            )
        labels[name.replace("\\", "/").removeprefix("./")] = cast("str | int", value)
    return LabelTable(where, _whole(labels, label), exact=exact, notes=notes)


def _whole(labels: Labels, column: str) -> Labels:
    """Labels of texts that are all whole numbers are numbers; -1 and 1 are an attribute."""
    if not all(isinstance(value, str) for value in labels.values()):
        return labels
    if all(_WHOLE.fullmatch(str(value)) for value in labels.values()):
        return {name: int(value) for name, value in labels.items()}
    if set(labels.values()) == {"1", "-1"}:
        words = {"1": column, "-1": f"not {column}"}
        return {name: words[str(value)] for name, value in labels.items()}
    return labels


def _attributes(names: Sequence[str], where: str) -> str:
    return (
        f"{where}: all images are one class; for two by an attribute: --label-column {names[0]} "
        f"(or one of {_some(names[1:])})"
    )


def _some(names: Iterable[str]) -> str:
    every = [shown(name) for name in names]
    return ", ".join(every[:12]) + (f", ... {len(every)} in all" if len(every) > 12 else "")


def _list(text: str, where: str, read: Read, column: str | None) -> LabelTable:
    """Lines of a name and a label, or of CelebA's attributes, or of a label each."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{where} is empty")
    if len(lines) > 2 and _WHOLE.fullmatch(lines[0].strip()) and len(lines[1].split()) > 1:
        names = lines[1].split()
        cells = [line.split() for line in lines[2:]]
        if all(len(row) == len(names) + 1 for row in cells):
            rows = [dict(zip(["file_name", *names], row, strict=True)) for row in cells]
            table = _rows(rows, where, column, exact=False)
            return table._replace(notes=table.notes if column is None else ())
    mark = "\t" if "\t" in lines[0] else None
    rows_ = [line.split(mark) for line in lines]
    if all(len(row) >= 2 for row in rows_):
        return LabelTable(where, _whole({row[0].strip(): row[1].strip() for row in rows_}, "label"))
    if any(len(row) != 1 for row in rows_):
        raise DataError(f"{where} is not a list of names and labels")
    return _ground_truth([row[0] for row in rows_], where, read)


def _ground_truth(values: Sequence[str], where: str, read: Read) -> LabelTable:
    """A label a line, of the images 1, 2, ... ImageNet numbers its classes in an order of its own,
    which `meta.mat` tells; by WordNet names they have the numbers of the training images."""
    if not all(_WHOLE.fullmatch(value) for value in values):
        labels: Labels = {str(n): value for n, value in enumerate(values, 1)}
        return LabelTable(where, labels, numbered=True)
    try:
        data = read("meta.mat")
    except DataError as error:
        raise DataError(
            f"{where} numbers its classes in an order of its own: put the development kit's "
            f"meta.mat beside it ({error})"
        ) from error
    names = ilsvrc_classes(data, where)
    missing = next((value for value in values if int(value) not in names), None)
    if missing is not None:
        raise DataError(f"{where} has the class {missing}, which its meta.mat does not name")
    labels = {str(n): names[int(value)] for n, value in enumerate(values, 1)}
    return LabelTable(where, labels, sorted(set(names.values())), numbered=True)
