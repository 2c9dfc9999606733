"""Writing a shard set so that it exists whole or not at all.

Shards go into a hidden sibling folder, each file is synced to disk, and one rename makes the set
appear. A crash, a full disk or SIGKILL leaves nothing at the target; the next run removes what a
dead one left (a lock, which the kernel drops with its process, tells the dead from the living).

    with ShardSetWriter(out, resolution=8, channels=1) as writer:
        writer.add("000000000", pixels, label); writer.end_shard(); ...
        writer.commit(make_index, force=False)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from fasttrain_data.images import encode_png
from fasttrain_data.index import INDEX_NAME, ContentHash, Index, ShardInfo

__all__ = ["ShardSetWriter", "is_replaceable"]


class ShardSetWriter:
    """Write deterministic WebDataset tars; see the module's text. Not for concurrent use."""

    def __init__(self, out: Path, *, resolution: int, channels: int) -> None:
        # normpath keeps `a/b/..` and a trailing `.` from giving the sibling an odd place.
        self.out = Path(os.path.abspath(out))
        self.content = ContentHash(resolution, channels)
        self.shards: list[ShardInfo] = []
        self._file: IO[bytes] | None = None
        self._tar: tarfile.TarFile | None = None
        self._images = 0

    def __enter__(self) -> Self:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self.out)
        self.folder = Path(tempfile.mkdtemp(prefix=_prefix(self.out), dir=self.out.parent))
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # some network file systems lock no folders: leftovers stay then
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # closing writes what is buffered: a full disk fails again
                self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def add(self, key: str, pixels: npt.NDArray[np.uint8], label: int) -> None:
        """Append one record: uint8 [H, W, C] pixels and their label."""
        if self._tar is None:
            path = self.folder / f"shard-{len(self.shards):06d}.tar"
            self._file = path.open("wb")
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        _add_member(self._tar, f"{key}.png", encode_png(pixels))
        _add_member(self._tar, f"{key}.cls", str(label).encode())
        self.content.add(pixels, label)
        self._images += 1

    def end_shard(self) -> None:
        """Close the shard and record its size and hash. Without records it does nothing."""
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        _sync(self._file)
        path = Path(self._file.name)
        self._file.close()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.shards.append(
            ShardInfo(name=path.name, images=self._images, bytes=path.stat().st_size, sha256=digest)
        )
        self._tar, self._file, self._images = None, None, 0

    def commit(self, make_index: Callable[[str, list[ShardInfo]], Index], *, force: bool) -> Index:
        """Write the index and let the set appear at `out`.

        `make_index` gets the content hash and the shards. With `force` an older set is replaced.
        """
        self.end_shard()
        index = make_index(self.content.hexdigest(), self.shards)
        with (self.folder / INDEX_NAME).open("wb") as file:
            file.write(index.to_json().encode())
            _sync(file)
        self.folder.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        _sync_folder(self.folder)
        self._appear(force)
        _sync_folder(self.out.parent)
        return index

    def _appear(self, force: bool) -> None:
        if not (force and self.out.exists()):
            os.rename(self.folder, self.out)  # over an empty folder too; others make it fail
            return
        old = Path(tempfile.mkdtemp(prefix=_prefix(self.out), dir=self.out.parent))
        os.rename(self.out, old)
        os.rename(self.folder, self.out)
        shutil.rmtree(old, ignore_errors=True)


def is_replaceable(folder: Path) -> bool:
    """True when `folder` holds a shard set and nothing else, so that removing it loses no work."""
    names = {entry.name for entry in folder.iterdir()}
    return INDEX_NAME in names and all(
        name == INDEX_NAME or (name.startswith("shard-") and name.endswith(".tar"))
        for name in names
    )


def _prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _remove_leftovers(out: Path) -> None:
    """Remove the hidden folders of runs that died: nobody holds their lock any more."""
    for folder in out.parent.glob(f"{_prefix(out)}*"):
        with suppress(OSError):  # it is being written, or another user's
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime 0, uid 0, gid 0, mode 0644: the same bytes every time
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
