"""Where images come from. A source lists its items first (cheap) and decodes them one at a time.

    source = open_source("digits")           # scikit-learn's 1,797 handwritten digits, 8x8
    source = open_source("photos")           # photos/<class>/**/*.png

A new kind of source is one more class with the attributes and methods of `Source`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fasttrain_data.errors import DataError
from fasttrain_data.images import EXTENSIONS, BadImage, read_header, read_pixels

__all__ = ["DigitsSource", "FolderSource", "Layout", "OnBad", "Source", "open_source"]

# Called with the name of a file that is left out and why; it raises when there are too many.
OnBad = Callable[[str, str], None]


class Layout(NamedTuple):
    """What the records of a conversion look like, and which items of the source become records."""

    resolution: int
    channels: int
    items: list[int]


class Source(Protocol):
    """A list of labelled images.

    `classes` are names in label order; `labels` has one label an item; `identity` is what goes into
    the index and tells one source from another; `images_per_shard` is a default that suits it.
    """

    classes: list[str]
    labels: list[int]
    identity: dict[str, Any]
    images_per_shard: int

    def name(self, item: int) -> str: ...

    def layout(
        self,
        resolution: int | None,
        channels: int | None,
        on_bad: OnBad,
        advance: Callable[[int, int], None],
    ) -> Layout:
        """Look at the headers of all items; `advance(done, total)` drives a progress bar."""

    def read(
        self, item: int, layout: Layout, resize: bool, background: tuple[int, int, int]
    ) -> npt.NDArray[np.uint8]:
        """Decode one item to uint8 [H, W, C]. Raises BadImage."""


def open_source(source: str | Path) -> Source:
    """Return the source that a user named: the word `digits`, or a folder (`./digits` if so named).

    Raises DataError.
    """
    if source == "digits":
        return DigitsSource()
    if not Path(source).is_dir():
        raise DataError(f"no folder of images at {source}: name a folder, or `digits`")
    return FolderSource(Path(source))


class DigitsSource:
    """scikit-learn's digits: 1,797 grey images of 8x8, values 0..16 as round(v * 255 / 16).

    The one tie, 8 -> 127.5, becomes 128.
    """

    images_per_shard = 128

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError("`digits` needs scikit-learn: pip install scikit-learn") from error
        digits = load_digits()
        self._pixels = ((digits.images.astype(np.uint32) * 255 + 8) // 16).astype(np.uint8)
        self.labels = [int(label) for label in digits.target]
        self.classes = [str(digit) for digit in range(10)]
        self.identity: dict[str, Any] = {"kind": "digits", "images": len(self.labels)}

    def name(self, item: int) -> str:
        return f"digit {item}"

    def layout(
        self,
        resolution: int | None,
        channels: int | None,
        on_bad: OnBad,
        advance: Callable[[int, int], None],
    ) -> Layout:
        return Layout(resolution or 8, channels or 1, list(range(len(self.labels))))

    def read(
        self, item: int, layout: Layout, resize: bool, background: tuple[int, int, int]
    ) -> npt.NDArray[np.uint8]:
        image = Image.fromarray(self._pixels[item])
        if layout.resolution != 8:
            image = image.resize((layout.resolution,) * 2, Image.Resampling.LANCZOS)
        pixels = np.asarray(image, dtype=np.uint8)[..., None]
        return np.repeat(pixels, layout.channels, axis=-1)


class FolderSource:
    """A folder with one subfolder a class (any depth below it), or a flat folder as one class.

    Files are taken in sorted order; names that start with a dot and files that are no PNG, JPEG,
    WebP or BMP by name are passed over. A symbolic link is read when it leads to a file inside the
    folder; one that leads out of it, or to a folder, is a bad file.
    """

    images_per_shard = 1000

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        folders = sorted(
            entry.name
            for entry in os.scandir(self.root)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        found = {name: _walk(self.root, name) for name in folders}
        found = {name: files for name, files in found.items() if files}
        flat = [name for name in _image_names(self.root) if not (self.root / name).is_dir()]
        if flat and found:
            raise DataError(
                f"{root} has images both beside and inside class folders, {flat[0]} for one: "
                "move it into a class folder"
            )
        found = found or ({"images": flat} if flat else {})
        if not found:
            wanted = ", ".join(sorted(EXTENSIONS))
            raise DataError(f"no images in {root}: looked for {wanted} files in class folders")
        self.classes = list(found)
        self.labels = [label for label, name in enumerate(found) for _ in found[name]]
        self._files = [file for files in found.values() for file in files]
        self.identity = {
            "kind": "folder",
            "name": self.root.name,
            "files": len(self._files),
            "listing_sha256": self._listing_hash(),
        }

    def _listing_hash(self) -> str:
        """Hash of all names and sizes: enough to notice that a folder changed, at a stat a file."""
        digest = hashlib.sha256()
        for file in self._files:
            try:
                size = (self.root / file).lstat().st_size
            except OSError:
                size = -1
            digest.update(os.fsencode(file) + b"\0" + str(size).encode() + b"\n")
        return digest.hexdigest()

    def name(self, item: int) -> str:
        return str(self.root / self._files[item])

    def _path(self, item: int) -> Path:
        path = self.root / self._files[item]
        try:
            mode = path.lstat().st_mode
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise BadImage("cannot be read (broken link or vanished)") from error
        if stat.S_ISLNK(mode) and not real.is_relative_to(self.root):
            raise BadImage("symbolic link out of the folder")
        if real.is_dir():
            raise BadImage("symbolic link to a folder" if stat.S_ISLNK(mode) else "is a folder")
        return real

    def layout(
        self,
        resolution: int | None,
        channels: int | None,
        on_bad: OnBad,
        advance: Callable[[int, int], None],
    ) -> Layout:
        items: list[int] = []
        first: tuple[int, int, int] | None = None
        all_grey = True
        for item in range(len(self._files)):
            advance(item, len(self._files))
            try:
                header = read_header(self._path(item))
            except BadImage as error:
                on_bad(self.name(item), str(error))
                continue
            width, height = header.width, header.height
            first = first or (item, width, height)
            if resolution is None and (width, height) != first[1:]:
                raise DataError(
                    f"{self.name(item)} is {width}x{height} but {self.name(first[0])} is "
                    f"{first[1]}x{first[2]}: choose one size with --resolution N"
                )
            all_grey = all_grey and header.grey
            items.append(item)
        if first is None:
            raise DataError(f"no readable images in {self.root}")
        if resolution is None and first[1] != first[2]:
            raise DataError(
                f"{self.name(first[0])} is {first[1]}x{first[2]}, not square: "
                f"crop all to a square with --resolution {min(first[1:])}"
            )
        return Layout(resolution or first[1], channels or (1 if all_grey else 3), items)

    def read(
        self, item: int, layout: Layout, resize: bool, background: tuple[int, int, int]
    ) -> npt.NDArray[np.uint8]:
        return read_pixels(
            self._path(item),
            channels=layout.channels,
            resolution=layout.resolution if resize else None,
            background=background,
        )


def _image_names(folder: Path) -> list[str]:
    names = os.listdir(folder)
    return sorted(
        name
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
    )


def _walk(root: Path, name: str) -> list[str]:
    """Image files below root/name, relative to root, sorted, links to folders listed not entered.

    A class folder may not be a link itself when it leads out of the root.
    """
    top = root / name
    if top.is_symlink():
        raise DataError(f"{top} is a symbolic link to a folder: copy it, or name its target")
    files: list[str] = []
    for folder, subfolders, names in os.walk(top):
        here = Path(folder)
        subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
        links = [sub for sub in subfolders if (here / sub).is_symlink()]
        wanted = [n for n in names if os.path.splitext(n)[1].lower() in EXTENSIONS]
        wanted = [n for n in wanted if not n.startswith(".")]
        files += [str((here / n).relative_to(root)) for n in wanted + links]
    return sorted(files)
