"""What a user named as a source, looked at once for all kinds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from fasttrain_data.endings import DATA
from fasttrain_data.foreign import what_file
from fasttrain_data.index import INDEX_NAME
from fasttrain_data.samples import Fields
from fasttrain_data.sources.names import is_image
from fasttrain_data.sources.selection import Selection

__all__ = ["DATASET_JSON", "Place", "tars_in"]

DATASET_JSON = "dataset.json"
GZIP = b"\x1f\x8b"
FEW = 1000
"""Images that may be pictures of other data."""
FAR_MORE = 10
"""Times their bytes; each is counted with `LEAST` at least."""
LEAST = 4096
_ALL, _PLAIN = Selection(), Fields()


@dataclass(frozen=True)
class Place:
    """A place where images may be.

    Attributes:
        name: as the user wrote it.
        chosen: split, column and file of labels, where the user names any.
        fields: of WebDataset's samples, where the user names any.
        folder: whether it is one.
        head: a file's first 512 bytes; none for a folder, or where nothing is.
    """

    name: str
    chosen: Selection
    fields: Fields
    folder: bool
    head: bytes

    @classmethod
    def of(cls, name: str, chosen: Selection = _ALL, fields: Fields = _PLAIN) -> Place:
        """Raises OSError for a file that cannot be read."""
        path = Path(name)
        head = b""
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(512)
        return cls(name, chosen, fields, path.is_dir(), head)

    @property
    def path(self) -> Path:
        return Path(self.name)

    @cached_property
    def files(self) -> frozenset[str]:
        """Names of a folder's own files."""
        if not self.folder:
            return frozenset()
        return frozenset(entry.name for entry in self.path.iterdir() if entry.is_file())

    @property
    def gzipped(self) -> bool:
        """Whether it is a gzip file."""
        return self.head[:2] == GZIP

    def holds(self, *patterns: str) -> bool:
        """Whether it is a folder with something that one of the patterns matches."""
        return self.folder and any(any(self.path.glob(pattern)) for pattern in patterns)

    def has(self, *names: str) -> bool:
        """Whether it is a folder with a file of one of these names."""
        return self.folder and any((self.path / name).is_file() for name in names)

    @cached_property
    def has_images(self) -> bool:
        """Whether it has files with an image's name, up to three folders deep: other data beside
        them hide none. A few beside far more data, such as those of a README, do not count."""
        below = (file for depth in range(4) for file in self.path.glob("/".join("*" * (depth + 1))))
        images = (f for f in below if is_image(f.relative_to(self.path).as_posix()) and f.is_file())
        first = list(islice(images, FEW + 1))
        if not first or len(first) > FEW:
            return bool(first)
        data = (file for pattern in ("*", "*/*") for file in self.path.glob(pattern))
        size = sum(file.stat().st_size for file in data if file.suffix in DATA and file.is_file())
        return size < FAR_MORE * sum(max(file.stat().st_size, LEAST) for file in first)

    @property
    def has_shards(self) -> bool:
        """Whether it is a shard set: an `index.json` beside images and no shards is another's."""
        return self.has(INDEX_NAME) and (self.holds("shard-*.tar") or not self.has_images)

    def tars(self) -> list[Path]:
        """The tars of images that it is, or holds: none where it has images or tables besides, but
        for the table that img2dataset writes beside each tar."""
        if not self.folder:
            tar = len(self.head) == 512 and self.path.suffix == ".tar"
            return [self.path] if tar and not what_file(self.head) else []
        tars = [] if self.has(DATASET_JSON) else tars_in(self.path)
        if tars and self.has_images:
            return []
        tables = {file.stem for file in self.path.glob("*.parquet")}
        return tars if tables <= {file.stem for file in tars} else []


def tars_in(path: Path) -> list[Path]:
    """The tars that a path names: itself, or those of a folder, sorted."""
    if not path.is_dir():
        return [path]
    # A FIFO would be waited for.
    tars = [file for file in path.glob("*.tar") if file.is_file()]
    return sorted(file for file in tars if not file.name.startswith("."))
