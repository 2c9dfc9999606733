"""Where images come from. A source lists its items first and decodes them one at a time.

source = open_source("digits")                     # scikit-learn's 1,797 handwritten digits
source = open_source("photos")                     # photos/<class>/**/*.png
source = open_source("cifar-10-python.tar.gz", split="test")
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fasttrain_data.errors import DataError, shown
from fasttrain_data.fetching import is_url
from fasttrain_data.foreign import what_file
from fasttrain_data.index import MAX_CLASS_NAME
from fasttrain_data.samples import Fields
from fasttrain_data.sources.base import ArraySource, EncodedSource, Layout, OnBad, Source
from fasttrain_data.sources.folder import FolderSource
from fasttrain_data.sources.place import Place
from fasttrain_data.sources.selection import Selection, Unlabelled
from fasttrain_data.sources.shards import Part, ShardSource

__all__ = ["ArraySource", "EncodedSource", "FolderSource", "Layout", "OnBad", "Part", "ShardSource"]
__all__ += ["SOURCES", "Source", "open_source"]

SOURCES = (
    "fasttrain_data.sources.arrays:DigitsSource",
    "fasttrain_data.sources.shards:ShardSource",
    "fasttrain_data.sources.emoji:EmojiSource",
    "fasttrain_data.sources.cifar:CifarSource",
    "fasttrain_data.sources.small_imagenet:SmallImageNetSource",
    "fasttrain_data.sources.stl10:Stl10Source",
    "fasttrain_data.sources.arrays:IdxSource",
    "fasttrain_data.sources.webdataset:WebDatasetSource",
    "fasttrain_data.sources.archives:TarSource",
    "fasttrain_data.sources.parquet:ParquetSource",
    "fasttrain_data.sources.archives:ZipSource",
    "fasttrain_data.sources.folder:FolderSource",
)
"""Kinds of sources, `module:name`: the first that knows a place opens it, and the last takes any
folder. A new one is a subclass of `Source` in a file of its own, and a line here."""


def open_source(
    source: str | Path,
    *,
    split: str | None = None,
    label_column: str | None = None,
    labels: Path | None = None,
    unlabelled: Unlabelled = "refuse",
    follow_links: bool = False,
    fields: Fields | None = None,
) -> Source:
    """Return the source that a user named; what it is, is seen from what is in it.

    `fields` chooses among the members of WebDataset's samples; the other arguments are those of
    `Selection`. Raises DataError.
    """
    chosen = Selection(split, label_column, labels, unlabelled, follow_links)
    chosen.check()
    try:
        place = Place.of(str(source), chosen, fields or Fields())
        for entry in SOURCES:
            module, _, name = entry.partition(":")
            kind: type[Source] = getattr(import_module(module), name)
            found = kind.opened(place)
            if found is not None:
                return _checked(found, place)
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or source}: {error.strerror or error}"
        ) from None
    raise DataError(_unknown(place))


def _unknown(place: Place) -> str:
    """What is at a place that no kind of source knows, and what to do."""
    path = place.path
    if is_url(place.name):
        return f"{place.name} is a URL: download it, and name the file or folder"
    if not path.is_file():
        return f"no images at {path}: name a folder or a file of images, or `digits`"
    if place.gzipped and (path.suffix == ".tgz" or path.name.endswith(".tar.gz")):
        folder = path.name.partition(".")[0] or "images"
        return (
            f"{path} is a compressed tar: unpack it, and name the folder: mkdir {folder} && "
            f"tar -xzf {path} -C {folder}"
        )
    if place.gzipped:
        return f"{path} is compressed: unpack it with gunzip, and name what it held"
    what = what_file(place.head) or "neither a zip, a tar nor a parquet file of images"
    return f"{path} is {what}"


def _checked(source: Source, place: Place) -> Source:
    """The source, if it takes what was chosen and an index can hold the names of its classes."""
    path, chosen, fields = place.path, place.chosen, place.fields
    if chosen.split not in (None, "train") and "split" not in source.options:
        raise DataError(
            f"--split is {chosen.split}: {path} has no splits, name the images of that one"
        )
    if fields != Fields() and "fields" not in source.options:
        option = "--label-field" if fields.label else "--image-key"
        raise DataError(f"{option} is for WebDataset's tars, and {path} is none")
    if chosen.label_column is not None and "label_column" not in source.options:
        hint = ", see --label-field" if "fields" in source.options else ""
        raise DataError(
            f"--label-column is {shown(chosen.label_column)}: {path} has no columns{hint}"
        )
    if chosen.labels is not None and "labels" not in source.options:
        raise DataError(f"--labels is for image files in a folder, zip or tar: {path} has its own")
    if chosen.follow_links and "follow_links" not in source.options:
        raise DataError(f"--follow-links is for folders of images, and {path} is none")
    known: set[str] = set()
    for name in source.classes:
        if not (name.isprintable() and 1 <= len(name) <= MAX_CLASS_NAME):
            raise DataError(
                f"{path} has a class named {shown(name)!r}: a name has 1 to {MAX_CLASS_NAME} "
                "printable characters"
            )
        if name in known:
            raise DataError(f"{path} has two classes named {shown(name)!r}")
        known.add(name)
    return source
