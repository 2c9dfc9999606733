"""Where images come from. A source lists its items first and decodes them one at a time.

source = open_source("digits")                     # scikit-learn's 1,797 handwritten digits
source = open_source("photos")                     # photos/<class>/**/*.png
source = open_source("cifar-10-python.tar.gz", split="test")
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from fasttrain_data.errors import DataError, shown
from fasttrain_data.foreign import what_file, what_folder
from fasttrain_data.index import INDEX_NAME, MAX_CLASS_NAME
from fasttrain_data.samples import Fields, holds_samples
from fasttrain_data.sources.archives import TarSource, ZipSource
from fasttrain_data.sources.arrays import DigitsSource, IdxSource
from fasttrain_data.sources.base import ArraySource, EncodedSource, Layout, OnBad, Source
from fasttrain_data.sources.batches import open_files
from fasttrain_data.sources.cifar import CifarSource
from fasttrain_data.sources.emoji import EmojiSource
from fasttrain_data.sources.folder import FolderSource
from fasttrain_data.sources.parquet import ParquetSource, parquet_files
from fasttrain_data.sources.recovery import recovered_index
from fasttrain_data.sources.selection import Selection, Unlabelled
from fasttrain_data.sources.shards import Part, ShardSource
from fasttrain_data.sources.small_imagenet import SmallImageNetSource
from fasttrain_data.sources.stl10 import Stl10Source
from fasttrain_data.sources.webdataset import WebDatasetSource, tars_in

__all__ = ["ArraySource", "EncodedSource", "FolderSource", "Layout", "OnBad", "Part", "ShardSource"]
__all__ += ["Source", "open_source"]

_LABELS = (FolderSource, ZipSource, TarSource)
_SPLITS = (*_LABELS, IdxSource, CifarSource, ParquetSource, SmallImageNetSource, Stl10Source)
_COLUMNS = (*_LABELS, CifarSource, ParquetSource, SmallImageNetSource, Stl10Source)


def open_source(
    source: str | Path,
    *,
    split: str | None = None,
    label_column: str | None = None,
    labels: Path | None = None,
    unlabelled: Unlabelled = "refuse",
    fields: Fields | None = None,
) -> Source:
    """Return the source that a user named; what it is, is seen from what is in it.

    `fields` chooses among the members of WebDataset's samples; the other arguments are those of
    `Selection`. Raises DataError.
    """
    fields = fields or Fields()
    chosen = Selection(split, label_column, labels, unlabelled)
    chosen.check()
    if source == "digits":
        return _checked(DigitsSource(), Path("digits"), chosen, fields)
    path = Path(source)
    try:
        if path.is_dir() or path.is_file():
            found = (_folder if path.is_dir() else _file)(path, chosen, fields)
            return _checked(found, path, chosen, fields)
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or path}: {error.strerror or error}"
        ) from None
    raise DataError(f"no images at {source}: name a folder or a file of images, or `digits`")


def _checked(source: Source, path: Path, chosen: Selection, fields: Fields) -> Source:
    """The source, if it knows what was chosen and an index can hold the names of its classes."""
    if chosen.split not in (None, "train") and not isinstance(source, _SPLITS):
        raise DataError(
            f"--split is {chosen.split}: {path} has no splits, name the images of that one"
        )
    if fields != Fields() and not isinstance(source, WebDatasetSource):
        option = "--label-field" if fields.label else "--image-key"
        raise DataError(f"{option} is for WebDataset's tars, and {path} is none")
    if chosen.label_column is not None and not isinstance(source, _COLUMNS):
        hint = ", see --label-field" if isinstance(source, WebDatasetSource) else ""
        raise DataError(
            f"--label-column is {shown(chosen.label_column)}: {path} has no columns{hint}"
        )
    if chosen.labels is not None and not isinstance(source, _LABELS):
        raise DataError(f"--labels is for image files in a folder, zip or tar: {path} has its own")
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


def _folder(path: Path, chosen: Selection, fields: Fields) -> Source:
    if (path / INDEX_NAME).is_file():
        return ShardSource(path)
    if (path / "emoji.json").is_file() or (path / "package/emoji.json").is_file():
        return EmojiSource(path)
    names = frozenset(entry.name for entry in path.iterdir() if entry.is_file())
    if CifarSource.finds(names):
        return CifarSource(open_files(path), chosen)
    if SmallImageNetSource.finds(names):
        return SmallImageNetSource(path, chosen)
    if Stl10Source.finds(names):
        return Stl10Source(path, chosen)
    if IdxSource.finds(names):
        return IdxSource(path, chosen.split or "train")
    if "dataset.json" not in names:
        if (recovered := recovered_index(path)) is not None:
            return ShardSource(path, index=recovered)
        tars = {file.stem for file in tars_in(path)}
        # img2dataset writes a table beside each tar.
        if tars and tars.issuperset(file.stem for file in path.glob("*.parquet")):
            return _tars(path, chosen, fields)
        if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
            return ParquetSource(parquet_files(path, chosen.split), str(path), chosen)
        if tars:
            return _tars(path, chosen, fields)
    what_folder(path, names)
    return FolderSource(path, chosen)


def _tars(path: Path, chosen: Selection, fields: Fields) -> Source:
    """WebDataset's samples where an image has a label or a text of its name beside it."""
    if fields == Fields():
        for tar in tars_in(path):
            with tar.open("rb") as file:
                if holds_samples(file, tar.stat().st_size, str(tar)):
                    break
        else:
            return TarSource(path, chosen)
    return WebDatasetSource(path, fields)


def _file(path: Path, chosen: Selection, fields: Fields) -> Source:
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] == b"PAR1":
        return ParquetSource([path], str(path), chosen)
    if head[:2] == b"PK":
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path} is not a sound zip file: download or copy it again")
        return ZipSource(path, chosen)
    if head[:2] == b"\x1f\x8b" and "-idx" not in path.name:
        return _packed(path, chosen)
    if len(head) == 512 and path.suffix == ".tar" and not what_file(head):
        return _tars(path, chosen, fields)
    if head[:3] == b"\0\0\x08" or (head[:2] == b"\x1f\x8b" and "-idx" in path.name):
        raise DataError(f"{path} is one file of an IDX set: name the folder that holds them")
    what = what_file(head) or "neither a zip, a tar nor a parquet file of images"
    raise DataError(f"{path} is {what}")


def _packed(path: Path, chosen: Selection) -> Source:
    """CIFAR's and emoji's packages are small enough to be unpacked to a temporary file."""
    if "cifar" in path.name.lower():
        files = open_files(path)
        if CifarSource.finds(files.names):
            return CifarSource(files, chosen)
    if path.suffix == ".tgz" and EmojiSource.starts(path):
        return EmojiSource(path)
    folder = path.name.partition(".")[0] or "images"
    if path.suffix == ".tgz" or path.name.endswith(".tar.gz"):
        raise DataError(
            f"{path} is a compressed tar: unpack it, and name the folder: mkdir {folder} && "
            f"tar -xzf {path} -C {folder}"
        )
    raise DataError(f"{path} is compressed: unpack it with gunzip, and name what it held")
