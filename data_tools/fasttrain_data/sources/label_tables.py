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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from fasttrain_data.errors import DataError, shown
from fasttrain_data.index import MAX_CLASSES
from fasttrain_data.sources.label_table import Labels, LabelTable, label_column
from fasttrain_data.sources.matlab import flower_labels, ilsvrc_classes
from fasttrain_data.tables import MAX_JSON_BYTES, read_json

__all__ = ["parse_labels"]

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
MAX_LINES, MAX_LINE = 4_000_000, 1 << 20
_WHOLE = re.compile(r"[0-9]{1,18}")

Read = Callable[[str], bytes]


def parse_labels(
    name: str, where: str, read: Read, column: str | None, *, asked: bool = False
) -> LabelTable:
    """The table of a file by its name; `read(name)` is the content of a file beside it. asked:
    whether the user names the file, so that it need not be as its publisher has it.

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
        raise DataError(
            f"{where} is not a text in UTF-8: save it so (of Excel's formats, CSV UTF-8)"
        ) from error
    if name.endswith(".jsonl"):
        return _rows(_json_lines(text, where), where, column, exact=not asked)
    if name.endswith((".csv", ".tsv")):
        return _csv(text, where, column, exact=name == "metadata.csv" and not asked)
    return _list(text, where, read, column)


def _json(table: Any, where: str, name: str) -> LabelTable:
    if name != "dataset.json" and isinstance(table, dict) and "annotations" in table:
        return _coco(table, where)
    if isinstance(table, dict) and "labels" not in table:
        return LabelTable(where, {}, hint=f'{where} has no "labels": it is not read')
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
        if type(row[1]) is not int or not 0 <= row[1] < MAX_CLASSES:
            raise wrong
        _add(labels, row[0].replace("\\", "/").removeprefix("./"), row[1], where)
    return LabelTable(where, labels, exact=True)


def _add(labels: Labels, name: str, label: str | int, where: str) -> None:
    """Raises DataError when the image has another label already."""
    if labels.setdefault(name, label) != label:
        raise DataError(
            f"{where} gives {shown(name)} several labels: give each image one, or take "
            "--label-column none"
        )


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


def _lines(text: str, where: str) -> Iterator[str]:
    """Lines that are not empty, with their ends. Raises DataError for too many or too long ones."""
    for number, line in enumerate(io.StringIO(text), 1):
        if number > MAX_LINES or len(line) > MAX_LINE:
            raise DataError(
                f"{where} has more than {MAX_LINES:,} lines, or one of more than {MAX_LINE:,} "
                "characters"
            )
        if line.strip():
            yield line


def _json_lines(text: str, where: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(text, where), 1):
        row = read_json(line.encode(), f"{where}: row {number}")
        if not isinstance(row, dict):
            raise DataError(f"{where}: row {number} is not an object with a file_name")
        yield row


def _csv(text: str, where: str, column: str | None, *, exact: bool) -> LabelTable:
    head = next(_lines(text, where), "")
    mark = max("\t;,", key=head.count)
    table = csv.DictReader(
        _lines(text, where), delimiter=mark, strict=True, restkey="", skipinitialspace=True
    )
    try:
        if set(table.fieldnames or ()) == {"ImageId", "PredictionString"}:  # ImageNet's on Kaggle
            pairs = ((row["ImageId"], (row["PredictionString"] or "").split()[:1]) for row in table)
            return LabelTable(where, {name: first[0] for name, first in pairs if first})
        return _rows(table, where, column, exact=exact)
    except csv.Error as error:
        raise DataError(f"{where} is not a table with a line of column names: {error}") from error


def _rows(
    rows: Iterable[Mapping[str, Any]], where: str, column: str | None, *, exact: bool
) -> LabelTable:
    first = list(islice(rows := iter(rows), 100))
    if not first:
        raise DataError(f"{where} has no rows")
    columns = list(first[0])
    lower = {name.strip().lower(): name for name in columns}
    file = next((lower[name] for name in FILE_COLUMNS if name in lower), columns[0])
    if exact and "file_name" not in lower:
        raise DataError(
            f"{where} has no column file_name, its columns are {_some(columns)}: name that of the "
            f"files so; or take its labels with --labels {where}; or rename it to have none of them"
        )
    rest = [name for name in columns if name not in (file, "")]  # pandas' index has no name
    if len(rest) > 10 and column is None and {row.get(rest[0]) for row in first} <= {"1", "-1"}:
        return LabelTable(where, {}, single=True, notes=[_attributes(rest, where)])
    label = label_column(rest, where, column)
    unused = [name for name in rest if name != label]
    notes = [f"{where}: columns not used: {_some(unused)}"] if unused else []
    if label is None:
        hint = f"{where} has no column of labels: choose one with --label-column ({_some(rest)})"
        return LabelTable(where, {}, hint=hint if rest else "")
    labels: Labels = {}
    for number, row in enumerate(chain(first, rows), 1):
        name, value = row.get(file), _value(row.get(label))
        if not isinstance(name, str) or not isinstance(value, str | int):
            raise DataError(
                f"{where}: row {number} has no {file if not isinstance(name, str) else label} that "
                f"is a number or a text: {shown(value)[:80]}"
            )
        if value != "":  # an image without a label, as one that has no row
            _add(labels, name.replace("\\", "/").removeprefix("./"), value, where)
    hint = "" if labels else f"{where} has no label in its column {label}"
    return LabelTable(where, _whole(labels, label), exact=exact, hint=hint, notes=notes)


def _value(cell: Any) -> Any:
    """A label as a table has it: pandas writes whole numbers as 3.0 where some rows have none."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    return cell.strip() if isinstance(cell, str) else cell


def _whole(labels: Labels, column: str) -> Labels:
    """Labels of texts that are all whole numbers are numbers; -1 and 1 are an attribute."""
    if not all(isinstance(value, str) for value in labels.values()):
        return labels
    whole = {name: str(value).removesuffix(".0") for name, value in labels.items()}
    if all(map(_WHOLE.fullmatch, whole.values())):
        return {name: int(value) for name, value in whole.items()}
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
    first = list(islice(_lines(text, where), 3))
    if not first:
        raise DataError(f"{where} is empty")
    names = first[1].split() if len(first) > 2 and _WHOLE.fullmatch(first[0].strip()) else []
    if len(names) > 1 and len(first[2].split()) == len(names) + 1:
        cells = (line.split() for line in islice(_lines(text, where), 2, None))
        rows = (dict(zip(["file_name", *names], row, strict=False)) for row in cells)
        table = _rows(rows, where, column, exact=False)
        return table._replace(notes=table.notes if column is None else ())
    mark = "\t" if "\t" in first[0] else None
    width = len(first[0].split(mark))
    if width == 1 and "," in first[0]:  # else each line would be the label of an image
        raise DataError(f"{where} has commas: name it .csv, with a first line such as file,label")
    labels: Labels = {}
    values: list[str] = []
    for line in _lines(text, where):
        row = line.split(mark)
        if (len(row) == 1) != (width == 1):
            raise DataError(
                f"{where} is not a list of names and labels: {shown(line.strip())[:80]}"
            )
        if width == 1:
            values.append(row[0].strip())
        else:
            _add(labels, row[0].strip(), row[1].strip(), where)
    if width == 1:
        return _ground_truth(values, where, read)
    return LabelTable(where, _whole(labels, "label"))


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
