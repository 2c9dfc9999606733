"""Where images come from. A source lists its items first and decodes them one at a time.

source = open_source("digits")                     # scikit-learn's 1,797 handwritten digits
source = open_source("photos")                     # photos/<class>/**/*.png
source = open_source("cifar-10-python.tar.gz", split="test")
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from fasttrain_data.errors import DataError, shown
from fasttrain_data.index import INDEX_NAME, MAX_CLASS_NAME
from fasttrain_data.samples import Fields, holds_samples
from fasttrain_data.sources.archives import EmojiSource, TarSource, ZipSource
from fasttrain_data.sources.arrays import DigitsSource, IdxSource
from fasttrain_data.sources.base import ArraySource, EncodedSource, Layout, OnBad, Source
from fasttrain_data.sources.cifar import CifarSource
from fasttrain_data.sources.folder import DATASET_JSON, FolderSource
from fasttrain_data.sources.parquet import ParquetSource, parquet_files
from fasttrain_data.sources.recovery import recovered_index
from fasttrain_data.sources.shards import Part, ShardSource
from fasttrain_data.sources.webdataset import WebDatasetSource, tars_in

__all__ = ["ArraySource", "EncodedSource", "FolderSource", "Layout", "OnBad", "Part", "ShardSource"]
__all__ += ["Source", "open_source"]


def open_source(
    source: str | Path, *, split: str = "train", fields: Fields | None = None
) -> Source:
    """Return the source that a user named; what it is, is seen from what is in it.

    `split` chooses among the files of IDX sets, CIFAR-10 and parquet tables, `fields` among the
    members of WebDataset's samples.
    Raises DataError.
    """
    fields = fields or Fields()
    if source == "digits":
        return DigitsSource()
    path = Path(source)
    try:
        if path.is_dir() or path.is_file():
            found = (_folder if path.is_dir() else _file)(path, split, fields)
            return _checked(found, path, split, fields)
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or path}: {error.strerror or error}"
        ) from None
    raise DataError(f"no images at {source}: name a folder or a file of images, or `digits`")


def _checked(source: Source, path: Path, split: str, fields: Fields) -> Source:
    """The source, if it knows the split and an index can hold the names of its classes."""
    if split != "train" and not isinstance(source, (IdxSource, CifarSource, ParquetSource)):
        raise DataError(f"--split is {split}: {path} has no splits, name the images of that one")
    if fields != Fields() and not isinstance(source, WebDatasetSource):
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


def _folder(path: Path, split: str, fields: Fields) -> Source:
    if (path / INDEX_NAME).is_file():
        return ShardSource(path)
    if (path / "emoji.json").is_file() or (path / "package/emoji.json").is_file():
        return EmojiSource(path)
    if (path / "batches.meta").is_file():
        return CifarSource(path, split)
    if any(path.glob("*-idx3-ubyte*")) or any(path.glob("*.idx3-ubyte*")):
        return IdxSource(path, split)
    if not (path / DATASET_JSON).is_file():
        if (recovered := recovered_index(path)) is not None:
            return ShardSource(path, index=recovered)
        tars = {file.stem for file in tars_in(path)}
        # img2dataset writes a table beside each tar.
        if tars and tars.issuperset(file.stem for file in path.glob("*.parquet")):
            return _tars(path, fields)
        if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
            files = parquet_files(path, split)
            if not files:
                raise DataError(f"{path} has no parquet files of the split {split}: see --split")
            return ParquetSource(files, str(path))
        if tars:
            return _tars(path, fields)
    return FolderSource(path)


def _tars(path: Path, fields: Fields) -> Source:
    """WebDataset's samples where an image has a label or a text of its name beside it."""
    if fields == Fields():
        for tar in tars_in(path):
            with tar.open("rb") as file:
                if holds_samples(file, tar.stat().st_size, str(tar)):
                    break
        else:
            return TarSource(path)
    return WebDatasetSource(path, fields)


def _file(path: Path, split: str, fields: Fields) -> Source:
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] == b"PAR1":
        return ParquetSource([path], str(path))
    if head[:2] == b"PK" or path.suffix == ".zip":
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path} is not a sound zip file")
        return ZipSource(path)
    if head[:3] == b"\0\0\x08" or (head[:2] == b"\x1f\x8b" and "-idx" in path.name):
        raise DataError(f"{path} is one file of an IDX set: name the folder that holds them")
    if head[:2] == b"\x1f\x8b":
        if "cifar" in path.name:
            return CifarSource(path, split)
        if path.suffix == ".tgz":
            return EmojiSource(path)
        raise DataError(f"{path} is compressed: unpack it, and name the folder")
    if len(head) == 512 and path.suffix == ".tar":
        return _tars(path, fields)
    raise DataError(f"{path} is neither a zip, a tar nor a parquet file of images")
