"""Where images come from. A source lists its items first and decodes them one at a time.

source = open_source("digits")                     # scikit-learn's 1,797 handwritten digits
source = open_source("photos")                     # photos/<class>/**/*.png
source = open_source("cifar-10-python.tar.gz", split="test")
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fasttrain_data.errors import DataError, shown
from fasttrain_data.index import MAX_CLASS_NAME
from fasttrain_data.samples import Fields
from fasttrain_data.sources.base import ArraySource, EncodedSource, Layout, OnBad, Source
from fasttrain_data.sources.folder import FolderSource
from fasttrain_data.sources.place import Place
from fasttrain_data.sources.shards import Part, ShardSource

__all__ = ["ArraySource", "EncodedSource", "FolderSource", "Layout", "OnBad", "Part", "ShardSource"]
__all__ += ["SOURCES", "Source", "open_source"]

SOURCES = (
    "fasttrain_data.sources.arrays:DigitsSource",
    "fasttrain_data.sources.shards:ShardSource",
    "fasttrain_data.sources.cifar:CifarSource",
    "fasttrain_data.sources.arrays:IdxSource",
    "fasttrain_data.sources.emoji:EmojiSource",
    "fasttrain_data.sources.webdataset:WebDatasetSource",
    "fasttrain_data.sources.archives:TarSource",
    "fasttrain_data.sources.parquet:ParquetSource",
    "fasttrain_data.sources.archives:ZipSource",
    "fasttrain_data.sources.folder:FolderSource",
)
"""Kinds of sources, `module:name`: the first that knows a place opens it, and the last takes any
folder. A new one is a subclass of `Source` in a file of its own, and a line here."""


def open_source(
    source: str | Path, *, split: str = "train", fields: Fields | None = None
) -> Source:
    """Return the source that a user named; what it is, is seen from what is in it.

    `split` chooses among the files of IDX sets, CIFAR-10 and parquet tables, `fields` among the
    members of WebDataset's samples.
    Raises DataError.
    """
    try:
        place = Place.of(str(source), split, fields or Fields())
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
    if place.gzipped:
        raise DataError(f"{source} is compressed: unpack it, and name the folder")
    if place.path.is_file():
        raise DataError(f"{source} is neither a zip, a tar nor a parquet file of images")
    raise DataError(f"no images at {source}: name a folder or a file of images, or `digits`")


def _checked(source: Source, place: Place) -> Source:
    """The source, if it knows the split and an index can hold the names of its classes."""
    path, fields = place.path, place.fields
    if place.split != "train" and not source.splits:
        raise DataError(
            f"--split is {place.split}: {path} has no splits, name the images of that one"
        )
    if fields != Fields() and not source.has_fields:
        option = "--label-field" if fields.label else "--image-key"
        raise DataError(f"{option} is for WebDataset's tars, and {path} is none")
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
