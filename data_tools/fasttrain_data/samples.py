"""The samples of a tar as WebDataset's tools write it: members whose names agree up to the first
dot of the base name are one sample, `KEY.jpg` with its label `KEY.cls`.

    samples = read_samples(file, size, "set-000000.tar", Fields(label="category"))
    samples.keys[0], samples.offsets[0], samples.sizes[0], samples.labels[0]

Anyone may have made a tar: members are found by `tar.scan`, label texts are bounded and no more
than parsed, and nothing is decoded by what a name says.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

from fasttrain_data.endings import IMAGE_ENDINGS
from fasttrain_data.errors import DataError, shown
from fasttrain_data.tables import read_json
from fasttrain_data.tar import MAX_MEMBER_BYTES, Member, printable, scan

__all__ = ["Fields", "Samples", "holds_samples"]
__all__ += ["is_hidden", "read_samples", "split_name"]

COMPANIONS = frozenset({"cls", "json", "txt"})
LABEL_LIKE = ("label", "cls", "class", "class_id", "class_label", "class_name", "target")
MAX_LABEL_BYTES = 1 << 20
MAX_LABEL_VALUES = 100_000
MAX_KEY = 1000


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which members of a sample are its image and its label.

    Attributes:
        label: a field of `KEY.json`; or, with a dot before it, the member whose text is the label,
            such as `.txt`; by default `.cls` where there is one.
        image: the image's member after the first dot, such as `input.jpg`, of samples with several.
    """

    label: str | None = None
    image: str | None = None

    @property
    def member(self) -> str:
        """The member that has the label, without its dot."""
        if self.label is None:
            return "cls"
        return self.label[1:].lower() if self.label.startswith(".") else "json"


@dataclass
class Samples:
    """The samples of a tar that have an image, in its order.

    Attributes:
        keys: name of each sample up to the first dot of its base name, folders kept.
        names: full name of each image's member.
        offsets, sizes: where its bytes lie in the file.
        labels: number of each sample's label in `texts`; -1 without one.
        texts: the labels as they are written, each once.
        folder: number of each sample's folder in `folders`, whose names end in a slash.
        first_unlabelled: key of the first sample without a label.
        irregular: why an image cannot be read, by sample.
        others: members that are neither image nor label, by ending.
        companions: whether a sample has a member besides its image that may tell of it.
        hint: a field of a `KEY.json` that looks like a label and was not asked for.
    """

    keys: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    texts: list[str] = field(default_factory=list)
    folder: array[int] = field(default_factory=lambda: array("i"))
    folders: list[str] = field(default_factory=list)
    first_unlabelled: str | None = None
    irregular: dict[int, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    companions: bool = False
    hint: str = ""

    def __len__(self) -> int:
        return len(self.keys)


def is_hidden(name: str) -> bool:
    """Whether a part of a path starts with a dot, or is what macOS adds to archives."""
    if not name.startswith((".", "__")) and "/." not in name and "/__" not in name:
        return False  # nearly every name
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def split_name(name: str) -> tuple[str, str]:
    """Key and field of a member: `a.b/cat.seg.PNG` is `a.b/cat` and `seg.png`."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return folder + slash + key, ending.lower()


def is_companion(ending: str) -> bool:
    """Whether a field is one by which WebDataset's tools tell of an image."""
    return ending.rpartition(".")[2] in COMPANIONS


def holds_samples(file: IO[bytes], end: int, where: str) -> bool:
    """Whether a tar has an image with a companion; it is read up to there. Raises DataError."""
    images, companions = set[str](), set[str]()
    for member in scan(file, end, where):
        if member.kind is not None:
            continue
        key, ending = split_name(printable(member.name).replace("\\", "/").removeprefix("./"))
        image = ending.rpartition(".")[2] in IMAGE_ENDINGS
        if not image and not is_companion(ending):
            continue
        (images if image else companions).add(key)
        if key in (companions if image else images):
            return True
    return False


def read_samples(file: IO[bytes], end: int, where: str, fields: Fields) -> Samples:
    """Find the samples of a tar in a file, up to the byte `end`. The file is read forwards.

    Raises DataError, naming the member, for a sample with several images of which none is chosen,
    and a label that is none.
    """
    return _Reader(where, fields).read(file, end)


class _Reader:
    """Members of one sample need not lie together: a tar of a folder has them in any order."""

    def __init__(self, where: str, fields: Fields) -> None:
        self.where, self.fields = where, fields
        self.found = Samples()
        self._rows: dict[str, int] = {}
        self._labels: dict[str, str] = {}
        self._keys: set[str] = set()  # of other members
        self._wanted = fields.member
        self._looked = False

    def read(self, file: IO[bytes], end: int) -> Samples:
        for member in scan(file, end, self.where):
            name = printable(member.name).replace("\\", "/").removeprefix("./")
            if member.kind == "a folder" or is_hidden(name):
                continue
            key, ending = split_name(name)
            last = ending.rpartition(".")[2]
            chosen = ending == self.fields.image if self.fields.image else last in IMAGE_ENDINGS
            if chosen:
                self._image(member, name, key, ending)
            elif ending == self._wanted:
                self._label(member, name, key, file)
            else:
                self._other(member, name, key, ending, file)
        return self._finished()

    def _image(self, member: Member, name: str, key: str, ending: str) -> None:
        found = self.found
        if len(key) > MAX_KEY:
            raise DataError(
                f"{self.where}: a key has more than {MAX_KEY} characters: {shown(key[:60])}"
            )
        row = self._rows.setdefault(key, len(found.keys))
        if row == len(found.keys):
            found.keys.append(key)
            found.names.append(name)
            found.offsets.append(0)
            found.sizes.append(0)
        elif found.names[row] != name:
            other = split_name(found.names[row])[1]
            raise DataError(
                f"{self.where}: sample {key} has several images, {other} and {ending}: name the "
                f"one to read with --image-key {other} (a key ends at the first dot)"
            )
        found.offsets[row], found.sizes[row] = member.offset, member.size  # the last one wins
        found.irregular.pop(row, None)
        if member.kind is not None:
            found.irregular[row] = f"is {member.kind}"
        elif member.size > MAX_MEMBER_BYTES:
            found.irregular[row] = f"more than {MAX_MEMBER_BYTES >> 20} MiB"

    def _label(self, member: Member, name: str, key: str, file: IO[bytes]) -> None:
        where = f"{self.where}/{name}"
        if member.kind is not None:
            raise DataError(f"{where} is {member.kind}, not a label")
        if member.size > MAX_LABEL_BYTES:
            raise DataError(f"{where} has {member.size} bytes: too long for a label")
        content = file.read(member.size)
        if self._wanted == "json":
            text = self._json(content, where)
        else:
            try:
                text = content.decode().strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not a text, and no label") from error
            if not text.isprintable() or not 1 <= len(text) <= MAX_KEY:
                raise DataError(f"{where} is not a label: {shown(text[:80])!r}")
        self._labels[key] = text

    def _json(self, content: bytes, where: str) -> str:
        table = read_json(content, where, most=MAX_LABEL_VALUES)
        name = str(self.fields.label)
        value = table.get(name) if isinstance(table, dict) else None
        if value is None:
            fields = ", ".join(map(shown, list(table)[:20])) if isinstance(table, dict) else "none"
            raise DataError(f"{where} has no field {name}: its fields are {fields or 'none'}")
        if type(value) is int and 0 <= value < 10**9:
            return str(value)
        if isinstance(value, str) and value.isprintable() and 1 <= len(value.strip()) <= MAX_KEY:
            return value.strip()
        raise DataError(
            f"{where}: {name} is neither a whole number nor a text: {shown(value)[:80]}"
        )

    def _other(self, member: Member, name: str, key: str, ending: str, file: IO[bytes]) -> None:
        if member.kind is not None:
            return
        self.found.others[f".{ending}" if ending else os.path.basename(name)] += 1
        if is_companion(ending):
            self._keys.add(key)
        if ending == "json" and self.fields.label is None and not self._looked:
            self._looked = True
            if member.size <= MAX_LABEL_BYTES:
                self.found.hint = _label_like(file.read(member.size))

    def _finished(self) -> Samples:
        found = self.found
        found.companions = not self._keys.isdisjoint(self._rows) or bool(
            self._labels.keys() & self._rows.keys()
        )
        texts: dict[str, int] = {}
        folders: dict[str, int] = {}
        for row, key in enumerate(found.keys):
            folder = key[: key.rfind("/") + 1]
            found.folder.append(folders.setdefault(folder, len(folders)))
            text = self._labels.pop(key, None)
            if text is not None:
                found.labels.append(texts.setdefault(text, len(texts)))
                continue
            found.labels.append(-1)
            if found.first_unlabelled is None and row not in found.irregular:
                found.first_unlabelled = key
        found.texts, found.folders = list(texts), list(folders)
        if self._labels:
            found.others[f".{self._wanted}"] += len(self._labels)
        return found


def _label_like(content: bytes) -> str:
    try:
        table = read_json(content, "", most=MAX_LABEL_VALUES)
    except DataError:
        return ""
    return next((name for name in LABEL_LIKE if isinstance(table, dict) and name in table), "")
