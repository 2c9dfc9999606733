"""From class numbers, as files of labels and tables have them, to classes.

    classes_of({0, 2}, "labels.csv")             # ["0", "1", "2"], {0: 0, 2: 2}, []
    classes_of({7, 1000000}, "labels.csv")       # ["7", "1000000"], {7: 0, 1000000: 1}, [a note]

Ids are whole numbers, too, and a network has an input for each class.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fasttrain_data.errors import DataError
from fasttrain_data.index import MAX_CLASSES

__all__ = ["LARGEST", "classes_of"]

LARGEST = 10**18 - 1
"""Of the numbers that are read."""


def classes_of(numbers: Collection[int], where: str) -> tuple[list[str], dict[int, int], list[str]]:
    """Class names, the label of each number that occurs, and lines that a user should see.

    Labels are the numbers themselves, so that all splits of a set agree, as long as there may be so
    many classes. Beyond that classes are those that occur, in their order.

    Raises DataError when there are too many.
    """
    most, notes = max(numbers), list[str]()
    names: Sequence[int] = range(most + 1)
    labels = {n: n for n in numbers}
    if most >= MAX_CLASSES:
        names = sorted(numbers)
        labels = {n: label for label, n in enumerate(names)}
        notes = [
            f"{where}: {len(names):,} numbers from {names[0]} to {names[-1]} are labels: each of "
            f"these is a class, numbered 0 to {len(names) - 1}; give another split the same "
            "numbers with --class-names and this set"
        ]
    if len(names) > MAX_CLASSES:
        raise DataError(f"{where} has {len(names):,} classes: there are at most {MAX_CLASSES}")
    return [str(n) for n in names], labels, notes
