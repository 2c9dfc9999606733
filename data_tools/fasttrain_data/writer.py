"""Writing a shard set so that it exists whole or not at all, and so that a crash costs one shard.

Shards go into a hidden sibling folder, each file is synced to disk, and one rename makes the set
appear. Beside each finished shard lies a journal of it; after an error, crash or SIGKILL the next
run of the same conversion goes on with the shards that are missing, and one of another conversion
removes what the dead one left (a lock, which the kernel drops with its process, tells the dead from
the living).

    with Staging(out, fingerprint) as staging:
        staging.write(0, "png", [("000000000", pixels, label), ...], bad=[])
        staging.commit(make_index, replace=False)
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from fasttrain_data.errors import DataError
from fasttrain_data.index import INDEX_NAME, ContentHash, Index, ShardInfo
from fasttrain_data.records import Stored
from fasttrain_data.shard_file import Item, write_records

__all__ = ["SKIPPED_NAME", "Shard", "Staging", "is_replaceable", "kept", "remove_journals"]
__all__ += ["sync_file", "tally", "write_atomic"]

SKIPPED_NAME = "skipped.jsonl"
# `class_features-...` is computed from a set, by `fasttrain class-features`, and lies beside it.
_OURS = re.compile(
    r"index\.json|skipped\.jsonl|shard-[0-9]{6,}\.tar(\.json)?|class_features-[0-9]+\.safetensors"
)
BadFile = tuple[str, str, str]
"""Name in a message, name within the source, reason."""


@dataclass(frozen=True)
class Shard:
    """A finished shard as its journal has it; `size` is 0 when all its files were bad. `several`
    are files of which the first picture was taken."""

    number: int
    size: int
    sha256: str
    labels: list[int]
    digests: str
    bad: list[BadFile]
    several: list[str] = field(default_factory=list)

    def records(self) -> list[tuple[int, bytes]]:
        """Label and pixel digest of each record."""
        every = bytes.fromhex(self.digests)
        return [(label, every[32 * i : 32 * i + 32]) for i, label in enumerate(self.labels)]


class Staging:
    """The hidden folder of one conversion, named by its fingerprint (a hex string)."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        # The place itself: a folder cannot be renamed to the name of a link, and `a/b/..` or a
        # trailing `.` would give the sibling an odd place.
        self.out = Path(os.path.realpath(out))
        self.folder = self.out.parent / f"{_prefix(self.out)}{fingerprint[:16]}"

    def __enter__(self) -> Self:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self.out, but=self.folder)
        self.folder.mkdir(exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        if not _locked(self._lock, seconds=2):  # a killed run's processes may take a moment to die
            os.close(self._lock)
            raise DataError(f"{self.out} is being made by another process")
        for rest in self.folder.glob("*.part"):
            rest.unlink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error finished shards are kept, for the same command after a fix.
        if kind is None or not any(self.folder.glob("*.tar.json")):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def clear(self) -> None:
        """Keep nothing of what is finished."""
        for path in self.folder.iterdir():
            path.unlink()

    def finished(self, number: int) -> Shard | None:
        """What an earlier run wrote of this shard."""
        try:
            text = (self.folder / f"{_name(number)}.json").read_text()
            shard = Shard(**json.loads(text))
            size = (self.folder / _name(number)).stat().st_size if shard.size else 0
        except (OSError, ValueError, TypeError):
            return None
        return shard if size == shard.size else None

    def write(
        self,
        number: int,
        record: Stored,
        items: Iterable[Item],
        bad: list[BadFile],
        several: Sequence[str] = (),
    ) -> Shard:
        """Write one shard of keys, uint8 [H, W, C] pixels, labels; `bad` and `several` may grow as
        items come."""
        path = self.folder / _name(number)
        with path.with_suffix(".part").open("wb") as file:
            labels, digests, sha256 = write_records(file, record, items)
            sync_file(file)
            size = file.tell()
        if labels:
            path.with_suffix(".part").rename(path)
        else:
            path.with_suffix(".part").unlink()
        shard = Shard(number, size if labels else 0, sha256, labels, digests, bad, list(several))
        write_atomic(self.folder / f"{_name(number)}.json", json.dumps(vars(shard)))
        return shard

    def commit(
        self,
        count: int,
        make_index: Callable[[Iterable[tuple[Shard, ShardInfo]]], Index],
        skipped: Sequence[tuple[str, str]],
        *,
        replace: bool,
    ) -> Index:
        """Number the shards without gaps, write the index, and let the set appear at `out`.

        `make_index` gets the shards one at a time. With `replace` an older set goes.
        """
        index = make_index(self._renumbered(count))
        write_atomic(self.folder / INDEX_NAME, index.to_json())
        if skipped:
            rows = (json.dumps({"file": name, "reason": why}) for name, why in skipped)
            write_atomic(self.folder / SKIPPED_NAME, "".join(row + "\n" for row in rows))
        self.appear(replace=replace)
        remove_journals(self.out)
        return index

    def _renumbered(self, count: int) -> Iterable[tuple[Shard, ShardInfo]]:
        place = 0
        for number in range(count):
            shard = self.finished(number)
            assert shard is not None
            if not shard.size:
                continue
            if place != number:  # a crash here loses the later shards, which are written again
                (self.folder / f"{_name(number)}.json").unlink()
                (self.folder / _name(number)).rename(self.folder / _name(place))
            info = ShardInfo(
                name=_name(place),
                images=len(shard.labels),
                bytes=shard.size,
                sha256=shard.sha256,
            )
            yield shard, info
            place += 1

    def appear(self, *, replace: bool) -> None:
        """Give the finished folder its name; with `replace` an older one goes."""
        self.folder.chmod(0o777 & ~_umask())
        _sync_folder(self.folder)
        self._rename(replace)
        _sync_folder(self.out.parent)

    def _rename(self, replace: bool) -> None:
        if not (replace and self.out.exists()):
            os.rename(self.folder, self.out)  # over an empty folder too; others make it fail
            return
        old = Path(tempfile.mkdtemp(prefix=_prefix(self.out), dir=self.out.parent))
        os.rename(self.out, old)
        os.rename(self.folder, self.out)
        shutil.rmtree(old, ignore_errors=True)


def is_replaceable(folder: Path) -> bool:
    """True when `folder` holds a shard set and nothing else, so that removing it loses no work."""
    names = {entry.name for entry in folder.iterdir()}
    return INDEX_NAME in names and all(_OURS.fullmatch(name) for name in names)


def remove_journals(folder: Path) -> None:
    """Remove the journals of a finished set, which a crash may have left beside its shards."""
    for journal in folder.glob("shard-*.tar.json"):
        journal.unlink(missing_ok=True)


def kept(out: Path) -> str:
    """What to say of finished shards that an error left, for the same command to go on with."""
    out = Path(os.path.realpath(out))
    found = next(out.parent.glob(f"{_prefix(out)}*"), None)
    return f"; finished shards are kept for the same command, in {found}" if found else ""


def _name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _remove_leftovers(out: Path, but: Path) -> None:
    """Remove the hidden folders of other conversions that died: nobody holds their lock now."""
    for folder in out.parent.glob(f"{_prefix(out)}*"):
        if folder == but:
            continue
        with suppress(OSError):  # it is being written, or another user's
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(descriptor: int, seconds: float) -> bool:
    """Whether the lock could be had. Some network file systems lock no folders: then it is had."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        except OSError:
            return True


def write_atomic(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def sync_file(file: BinaryIO) -> None:
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


def tally(
    shards: Iterable[tuple[Shard, ShardInfo]], resolution: int, channels: int
) -> tuple[ContentHash, Counter[int], tuple[ShardInfo, ...]]:
    """What an index says of written shards: the content's hash, images a class, the shards."""
    content, images, infos = ContentHash(resolution, channels), Counter[int](), []
    for shard, info in shards:
        infos.append(info)
        images.update(shard.labels)
        for label, digest in shard.records():
            content.add(label, digest)
    return content, images, tuple(infos)
