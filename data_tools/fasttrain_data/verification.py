"""Is a shard set what its index says? Every byte hashed, every record decoded, every label checked.

verify("data/digits")        # returns the index, or raises VerificationError with all problems
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fasttrain_data.errors import DataError, VerificationError
from fasttrain_data.index import ContentHash, Index, ShardInfo, load_index
from fasttrain_data.reader import decode_record, open_shard, read_records

__all__ = ["verify"]


def verify(path: str | Path, *, progress: Callable[[str, int, int], None] | None = None) -> Index:
    """Check sizes, SHA-256, PNG data, labels, counts and the content hash of the set at `path`.

    A shard that fails is named and the others are still checked.
    Raises DataError when there is no valid index, VerificationError when the shards differ from it.
    """
    folder = Path(path)
    index = load_index(folder)
    content = ContentHash(index.resolution, index.channels)
    labels = Counter[int]()
    keys: set[str] = set()
    problems: list[str] = []
    done = 0
    for shard in index.shards:
        if progress:
            progress("verifying", done, index.images)
        try:
            _verify_shard(folder, shard, index, content, labels, keys)
        except DataError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"cannot read {folder / shard.name}: {error.strerror or error}")
        done += shard.images
    if progress:
        progress("verifying", done, index.images)
    if not problems:
        for label, info in enumerate(index.classes):
            if labels[label] != info.images:
                problems.append(
                    f"{folder}: class {info.name} has {labels[label]} images, "
                    f"the index says {info.images}"
                )
        if content.hexdigest() != index.content_sha256:
            problems.append(f"{folder}: the content does not have the content_sha256 of the index")
    if problems:
        raise VerificationError(problems)
    return index


def _verify_shard(
    folder: Path,
    shard: ShardInfo,
    index: Index,
    content: ContentHash,
    labels: Counter[int],
    keys: set[str],
) -> None:
    name = str(folder / shard.name)
    count = 0
    with open_shard(folder, shard, check_hash=True) as file:
        for record in read_records(file, name=name):
            if record.key in keys:
                raise DataError(f"{name}: the key {record.key} occurs twice")
            keys.add(record.key)
            content.add(decode_record(record, index, name=name), record.label)
            labels[record.label] += 1
            count += 1
    if count != shard.images:
        raise DataError(f"{name} has {count} images, its index says {shard.images}")
