"""From the label texts of several tars to classes with numbers: the same for a conversion and an
index.

    labels = Labels("sets/cats", Fields())
    labels.add("set-000000.tar", samples)                  # of every tar
    labels.classes()                                       # ["cat", "dog"]
    labels.numbers(samples, "set-000000.tar")              # int32 [n]

Whole numbers are class numbers (`numbers.py`); texts are class names, sorted. Samples without
labels are one class, or have the class of their folder. The stem of a tar is a class only where no
member of any tar has a label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError, shown
from fasttrain_data.index import MAX_CLASSES
from fasttrain_data.samples import Fields, Samples
from fasttrain_data.sources.names import by_folder, class_order, inside
from fasttrain_data.sources.numbers import classes_of

__all__ = ["Labels"]

_NUMBER = re.compile(r"[0-9]{1,18}")


class Labels:
    """The labels of a set of tars, added in order.

    title: the set, in a message. notes: lines that a user should see, after `classes`.
    """

    def __init__(self, title: str, fields: Fields) -> None:
        self.title, self.fields = title, fields
        self.companions, self.notes = False, list[str]()
        self._places: dict[str, str] = {}  # label text -> the first tar that has it
        self._folders: list[tuple[str, list[str]]] = []
        self._unlabelled = self._hint = ""
        self._number: Mapping[str, int] | None = None

    def add(self, where: str, samples: Samples) -> None:
        """Take down what a tar has."""
        self.companions |= samples.companions
        for text in samples.texts:
            self._places.setdefault(text, where)
        if not self._unlabelled and samples.first_unlabelled is not None:
            self._unlabelled = f"{where}: sample {samples.first_unlabelled}"
        if not self._hint and samples.hint:
            self._hint = f"{where} has a field {samples.hint} in its KEY.json"
            self._hinted = samples.hint
        self._folders.append((where, samples.folders))

    def classes(self) -> list[str]:
        """Class names in the order of their numbers. Raises DataError when they cannot be told."""
        if not self._places:
            return self._without_labels()
        if self._unlabelled:
            raise DataError(
                f"{self._unlabelled} has no {self._label}, other samples have: complete it, or "
                "choose the label with --label-field"
            )
        numbers = [text for text in self._places if _NUMBER.fullmatch(text)]
        if not numbers:
            return self._named(sorted(self._places, key=class_order))
        if len(numbers) < len(self._places):
            name = next(text for text in self._places if not _NUMBER.fullmatch(text))
            raise DataError(
                f"{self._places[numbers[0]]} has the label {numbers[0]} and {self._places[name]} "
                f"the label {shown(name)}: class numbers and names do not go together"
            )
        classes, labels, self.notes = classes_of(set(map(int, numbers)), self.title)
        self._number = {text: labels[int(text)] for text in numbers}
        return classes

    def numbers(self, samples: Samples, where: str) -> npt.NDArray[np.int32]:
        """Class numbers of the samples of a tar that was added; `classes` comes before."""
        assert self._number is not None
        if self._places:
            table = [self._number[text] for text in samples.texts]
            return np.asarray(table, np.int32)[np.frombuffer(samples.labels, np.int32)]
        table = [self._number[self._prefix(where) + folder] for folder in samples.folders]
        return np.asarray(table, np.int32)[np.frombuffer(samples.folder, np.int32)]

    def _named(self, names: list[str]) -> list[str]:
        if len(names) > MAX_CLASSES:
            raise DataError(f"{self.title} has more than {MAX_CLASSES} different labels")
        self._number = {name: number for number, name in enumerate(names)}
        return names

    def _without_labels(self) -> list[str]:
        if self.fields.label is not None:
            raise DataError(f"no sample of {self.title} has a {self._label}: see --label-field")
        if self._hint:
            raise DataError(
                f"{self._hint}, and no sample has a KEY.cls: name the label with --label-field "
                f"{self._hinted}, or remove it from the tars"
            )
        paths = sorted({self._prefix(tar) + name for tar, names in self._folders for name in names})
        files = [f"{path}x" for path in paths]  # a file in each folder tells as much as all
        classes, numbers = by_folder(inside(files), self.title)
        self._number = dict(zip(paths, numbers, strict=True))
        return classes

    def _prefix(self, where: str) -> str:
        """The tar's stem as a folder, where stems are classes."""
        if self.companions or len(self._folders) < 2:
            return ""
        return f"{PurePosixPath(where).stem}/"

    @property
    def _label(self) -> str:
        member = self.fields.member
        return f"field {self.fields.label} in KEY.json" if member == "json" else f"KEY.{member}"
