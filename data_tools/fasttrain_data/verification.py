"""Is a shard set what its index says? Every byte hashed, every record decoded, every label checked.

verify("data/digits")              # returns the index, or raises VerificationError
run_verification("data/digits")    # and how many images are copies of another
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError, VerificationError
from fasttrain_data.index import ContentHash, Index, ShardInfo, load_index
from fasttrain_data.pool import in_order, processes
from fasttrain_data.reader import decode_record, open_shard, read_records
from fasttrain_data.records import digest

__all__ = ["Verification", "run_verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """A sound set: its index, how many images have the same pixels as an earlier one, and how many
    of these have another label than it."""

    index: Index
    copies: int
    contradictions: int


def verify(path: str | Path) -> Index:
    """As `run_verification`; returns the index."""
    return run_verification(path).index


def run_verification(
    path: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Check sizes, SHA-256, image data, labels, counts and the content hash of the set at `path`.

    A shard that fails is named and the others are still checked.
    Raises DataError when there is no valid index, VerificationError when the shards differ from it.
    """
    folder = Path(path)
    index = load_index(folder)
    content = ContentHash(index.resolution, index.channels)
    labels, digests = array("i"), array("Q")
    problems: list[str] = []
    done = 0

    def work(number: int) -> tuple[str, list[tuple[int, bytes]]]:
        shard = index.shards[number]
        try:
            return "", _read(folder, shard, index)
        except DataError as error:
            return str(error), []
        except OSError as error:
            return f"cannot read {folder / shard.name}: {error.strerror or error}", []

    results = in_order(work, len(index.shards), processes(workers, index.images))
    for number, (problem, records) in enumerate(results):
        if problem:
            problems.append(problem)
        for label, pixels in records:
            content.add(label, pixels)
            labels.append(label)
            digests.append(int.from_bytes(pixels[:8], "little"))
        done += index.shards[number].images
        if progress:
            progress("verifying", done, index.images)
    numbers = np.frombuffer(labels, np.int32)
    if not problems:
        problems = _totals(folder, index, numbers, content)
    if problems:
        raise VerificationError(problems)
    return Verification(index, *_copies(np.frombuffer(digests, np.uint64), numbers))


def _read(folder: Path, shard: ShardInfo, index: Index) -> list[tuple[int, bytes]]:
    """Label and pixel digest of each record of a shard. Raises DataError, OSError."""
    name = str(folder / shard.name)
    found: list[tuple[int, bytes]] = []
    keys: set[str] = set()
    with open_shard(folder, shard, check_hash=True) as file:
        for record in read_records(file, index, name=name):
            if record.key in keys:
                raise DataError(f"{name}: the key {record.key} occurs twice")
            keys.add(record.key)
            found.append((record.label, digest(decode_record(record, index, name=name))))
    if len(found) != shard.images:
        raise DataError(f"{name} has {len(found)} images, its index says {shard.images}")
    return found


def _totals(
    folder: Path, index: Index, labels: npt.NDArray[np.int32], content: ContentHash
) -> list[str]:
    count = np.bincount(labels, minlength=len(index.classes)).tolist()
    problems = [
        f"{folder}: class {info.name} has {count[label]} images, the index says {info.images}"
        for label, info in enumerate(index.classes)
        if count[label] != info.images
    ]
    if content.hexdigest() != index.content_sha256:
        problems.append(f"{folder}: the content does not have the content_sha256 of the index")
    return problems


def _copies(
    digests: npt.NDArray[np.uint64], labels: npt.NDArray[np.int32], parts: int = 16
) -> tuple[int, int]:
    """Images whose pixels an earlier one has, and those among them with another label than it.

    The 64 bits of a digest that are looked at take millions of images to collide by chance. They
    are sorted a part at a time, for the sake of memory.
    """
    copies = contradictions = 0
    for part in range(parts):
        chosen = np.flatnonzero(digests % parts == part)
        chosen = chosen[np.argsort(digests[chosen], kind="stable")]
        keys, numbers = digests[chosen], labels[chosen]
        again = np.append(False, keys[1:] == keys[:-1])[: len(keys)]
        earliest = np.maximum.accumulate(np.where(again, 0, np.arange(len(keys))))
        copies += int(again.sum())
        contradictions += int((numbers != numbers[earliest]).sum())
    return copies, contradictions
