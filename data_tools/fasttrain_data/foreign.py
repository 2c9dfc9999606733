"""What a file or folder is that holds images in a way that is not read, and what to do with it.

what_file(b"\\x89HDF...")       # "an HDF5 file, which is not read: write its images as files ..."
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fasttrain_data.endings import EXTENSIONS
from fasttrain_data.errors import DataError

__all__ = ["not_shards", "what_file", "what_folder", "what_picture"]

_TO_FILES = "write its images as PNG files into class folders"
_HUB = "in Python, datasets.load_from_disk(FOLDER).to_parquet(FILE), and convert that"
_KINDS: tuple[tuple[bytes, str], ...] = (
    (
        rb"version https://git-lfs\.github\.com/",
        "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
    ),
    (
        rb"(?i)\s*(<!doctype html|<html)",
        "a web page, saved under this name: the download failed or asks for a login",
    ),
    (rb"(?s)\s*(<\?xml.*)?<svg", "an SVG drawing, which is not read: convert it to PNG"),
    (rb"\x89HDF\r\n\x1a\n", f"an HDF5 file, which is not read: {_TO_FILES}"),
    (rb"MATLAB 5\.0", f"a MATLAB file, which is not read: {_TO_FILES}"),
    (rb"ARROW1|\xff\xff\xff\xff[^\0]{1,2}\0\0", f"an Arrow file, which is not read: {_HUB}"),
    (rb"\x93NUMPY", f"a NumPy array, which is not read: {_TO_FILES}"),
    (rb"(?s).{16}\xde\xc0\xef\xbe", f"an LMDB database, as LSUN's, which is not read: {_TO_FILES}"),
    (rb"\x80[\x02-\x05]", f"a pickle, which is not run: {_TO_FILES}"),
    (rb"Rar!", "a RAR archive: unpack it, and name the folder"),
    (rb"7z\xbc\xaf", "a 7z archive: unpack it, and name the folder"),
    (rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed: unpack it, and name the folder"),
    (rb"%PDF", "a PDF document: extract its images"),
)
_PACKED = (".tar", ".zip", ".parquet", ".tgz", ".tar.gz", "-ubyte", "-ubyte.gz", "batches.meta")
_PICTURES: tuple[tuple[bytes, str], ...] = (
    (rb"(?s).{4}ftypavi[fs]", "AVIF"),
    (rb"(?s).{4}ftyp(hei[cfsx]|hev[cx]|mif1|msf1)", "HEIC"),
    (rb"(?s).{4}ftyp", "a video"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"8BPS", "Photoshop"),
    (rb"\0\0\x01\0", "ICO"),
    (rb"P[1-6][\s]", "Netpbm"),
    (rb"DDS ", "DDS"),
    (rb"v/1\x01", "OpenEXR"),
)
_READ = rb"\x89PNG|\xff\xd8\xff|RIFF(?s:....)WEBP|BM|GIF8|II[*+]\0|MM\0[*+]"
"""Beginnings of pictures that are read."""


def what_file(head: bytes) -> str:
    """What a file is by its first 512 bytes, and what to do with it; nothing when it is unknown."""
    if not head:
        return "empty: download or copy it again"
    for pattern, what in _KINDS:
        if re.match(pattern, head):
            return what
    if re.match(_READ, head):
        return "one image: name the folder that holds it"
    picture = what_picture(head)
    if picture != "not an image":
        return f"one file ({picture}): name a folder of images"
    return ""


def what_picture(head: bytes) -> str:
    """What a file is that could not be opened as an image, and what to do with it: one of a kind
    that is not read, or a damaged one of a kind that is."""
    if not head:
        return "empty file"
    for pattern, name in _PICTURES:
        if re.match(pattern, head):
            return f"{name}, not read: convert it to PNG or JPEG"
    for pattern, what in _KINDS[:3]:
        if re.match(pattern, head):
            return f"is {what}"
    return "damaged image" if re.match(_READ, head) else "not an image"


def not_shards(path: Path) -> str:
    """What to do with a path that was to be a shard set: if it holds images, the command for it."""
    if path.is_file():
        with path.open("rb") as file:
            what = what_file(file.read(512))
        if what:
            return f"no shards at {path}: it is {what}"
        return f"{path} is not a shard set: {_convert(path)}"
    if any(path.glob("*.tar")):
        return (
            f"{path} holds tars without an index.json: train on them as they are after "
            f"`fasttrain-data index {path}`, or make shards of them: "
            f"`fasttrain-data convert {path} {_out(path)}`"
        )
    for what, endings in (("images", tuple(EXTENSIONS)), ("archives or tables", _PACKED)):
        if _holds(path, endings):
            return f"{path} holds {what} and is not a shard set: {_convert(path)}"
    source = "digits" if path.name == "digits" else "SOURCE"
    return f"no shards at {path}: make them with `fasttrain-data convert {source} {path}`"


def _out(path: Path) -> Path:
    return path.parent / f"{path.name.partition('.')[0] or 'images'}-shards"


def _convert(path: Path) -> str:
    out = _out(path)
    return (
        f"make one of it with `fasttrain-data convert {path} {out}` (photographs of several sizes: "
        f"--resolution 64), and name {out}"
    )


def _holds(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether one of the first files of a folder, four levels deep, ends so."""
    seen = 0
    for folder, inner, names in os.walk(path):
        if len(Path(folder).relative_to(path).parts) >= 3:
            inner.clear()
        if any(name.lower().endswith(endings) for name in names):
            return True
        seen += len(names) + len(inner)
        if seen > 10_000:
            break
    return False


def what_folder(path: Path, names: frozenset[str]) -> None:
    """Raises DataError for a folder whose images are in files that are not read."""
    if any(name.endswith(".arrow") for name in names):
        raise DataError(f"{path} holds Arrow files, which are not read: {_HUB}")
    inner = [path, *(entry for entry in sorted(path.iterdir()) if entry.suffix == ".lmdb")]
    inner += [entry for entry in sorted(path.iterdir()) if entry.name.endswith("_lmdb")]
    for folder in inner:
        if (folder / "data.mdb").is_file():
            raise DataError(
                f"{folder} is an LMDB database, as LSUN's, which is not read: {_TO_FILES}"
            )
    for endings, what in (
        ((".h5", ".hdf5"), "HDF5 files"),
        ((".tfrecord", ".tfrecords"), "TFRecord files"),
        ((".npz", ".npy"), "NumPy files"),
    ):
        found = sorted(name for name in names if name.lower().endswith(endings))
        if found and not any(entry.is_dir() for entry in path.iterdir()):
            raise DataError(
                f"{path} holds {what}, {found[0]} for one, which are not read: {_TO_FILES}"
            )
