"""From a set of images to one of latents: the same images in the same order in as many shards, with
what an autoencoder makes of each in the place of its pixels.

    index, _ = encode(Path("data/photos256"), Path("data/photos256-latents"), encoder)

The autoencoder is the caller's (`fasttrain encode` has one), because nothing of torch is known
here. The set appears whole or not at all, and after a crash the same command goes on with the
shards that are missing, as in a conversion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import accumulate, islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError, shown
from fasttrain_data.index import (
    LATENTS_VERSION,
    ClassInfo,
    Index,
    LatentInfo,
    ShardInfo,
    load_index,
)
from fasttrain_data.reader import Record, decode_record, open_shard, read_records
from fasttrain_data.shard_file import Item
from fasttrain_data.tar_index import RECORDS_NAME
from fasttrain_data.tars import holds_tars
from fasttrain_data.writer import Shard, Staging, is_replaceable, kept, remove_journals, tally

__all__ = ["ALONE", "Encoder", "Team", "encode"]

T = TypeVar("T")


class Encoder(Protocol):
    """The first half of an autoencoder."""

    def layout(self, resolution: int, colours: int) -> tuple[LatentInfo, int, int]:
        """What is recorded of the latents of images of this size, and their channels and pixels a
        side. Raises DataError for images that it does not take."""

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Images [n, H, W, C] -> [n, K C', H', W'], in the order of `fasttrain_data.records`."""


class Team(Protocol):
    """Processes that encode one set together, a shard at a time."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def agree(self, error: Exception | None) -> None:
        """Wait for all; raise in each of them the first error that one of them had."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def agree(self, error: Exception | None) -> None:
        if error is not None:
            raise error


ALONE = Alone()


def encode(
    path: Path,
    out: Path,
    encoder: Encoder,
    *,
    batch: int = 16,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    team: Team = ALONE,
) -> tuple[Index, bool]:
    """Write the latents of the set at `path` to `out`; returns their index, and whether they were
    there already.

    batch: images that are encoded at once; it changes nothing but rounding.
    force: replace another set at `out`.
    team: processes that call this with the same arguments, each with an encoder of its own; the
        shards are those of one process.

    Raises DataError, in one line, with nothing at `out`.
    """
    images, latents, channels, side = _together(team, lambda: _look(path, encoder))
    source = {
        "kind": "encoded",
        "name": shown(path.resolve().name),
        "content_sha256": images.content_sha256,
    }
    there = _existing(path, out, source, latents, force)
    if there is not None:
        return there, True
    starts = [0, *accumulate(shard.images for shard in images.shards)]

    def items(number: int) -> Iterator[Item]:
        place, records = starts[number], _records(path, images, images.shards[number])
        while part := list(islice(records, batch)):
            pixels = np.stack([decode_record(r, images, name=str(path)) for r in part])
            with np.errstate(over="ignore"):
                made = np.ascontiguousarray(encoder(pixels), "<f2")
            if not np.isfinite(made).all():
                raise DataError(f"{path}: latents are beyond float16, or not finite")
            for record, one in zip(part, made, strict=True):
                yield f"{place:09d}", one.view(np.uint8).transpose(1, 2, 0), record.label
                place += 1
            progress("encoding", place, images.images)

    def make_index(shards: Iterable[tuple[Shard, ShardInfo]]) -> Index:
        content, counts, infos = tally(shards, side, channels)
        return Index(
            format_version=LATENTS_VERSION,
            resolution=side,
            channels=channels,
            record="latents",
            latents=latents,
            classes=tuple(
                ClassInfo(name=entry.name, images=counts[label])
                for label, entry in enumerate(images.classes)
            ),
            images=counts.total(),
            shards=infos,
            content_sha256=content.hexdigest(),
            source=source,
            options={},
        )

    staging = Staging(out, _fingerprint(source, latents))
    own = range(team.rank, len(images.shards), team.size)

    def write() -> None:
        for number in own:
            if staging.finished(number) is None:
                staging.write(number, "latents", items(number), [])

    def finish() -> Index:
        return staging.commit(len(images.shards), make_index, [], replace=force)

    try:
        with ExitStack() as held:
            first = team.rank == 0  # it has the folder and its lock
            _together(team, lambda: held.enter_context(staging) if first else None)
            _together(team, write)
            index = _together(team, lambda: finish() if first else None)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}{kept(out)}") from error
    return index or load_index(out), False


def _look(path: Path, encoder: Encoder) -> tuple[Index, LatentInfo, int, int]:
    """The set, and how its latents are laid out: their description, channels and pixels a side."""
    if holds_tars(str(path)) or (path / RECORDS_NAME).exists():
        raise DataError(
            f"{path} is of tars that are no shards, and latents are made of shards: make them with "
            f"`fasttrain-data convert TARS OUT --resolution N`, and encode OUT"
        )
    images = load_index(path)
    images.check_images(path)
    images.check_files(path)
    return (images, *encoder.layout(images.resolution, images.channels))


def _together(team: Team, work: Callable[[], T]) -> T:
    """The work of this process, when all have done theirs."""
    problem = None
    try:
        done = work()
    except Exception as error:
        problem = error
    team.agree(problem)  # raises, if there is one
    return done


def _records(path: Path, index: Index, shard: ShardInfo) -> Iterator[Record]:
    with open_shard(path, shard, check_hash=True) as file:
        yield from read_records(file, index, name=str(path / shard.name))


def _fingerprint(source: dict[str, str], latents: LatentInfo) -> str:
    what = {"format": LATENTS_VERSION, "source": source, "latents": latents.model_dump()}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _existing(
    images: Path, out: Path, source: dict[str, str], latents: LatentInfo, force: bool
) -> Index | None:
    """The set at `out` when it is the wanted one. Raises DataError when it may not be written."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if out.resolve() == images.resolve():
        raise DataError(f"{out} holds the images themselves: name another folder for the latents")
    if not out.is_dir() or not is_replaceable(out):
        raise DataError(f"{out} exists and is not a shard set: choose another place")
    if force:
        return None
    index = load_index(out)
    index.check_files(out)
    if (index.source, index.latents) != (source, latents):
        raise DataError(
            f"{out} holds other shards: choose another folder, or replace it with --force"
        )
    remove_journals(out)
    return index
