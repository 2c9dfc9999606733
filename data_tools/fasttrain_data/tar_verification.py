"""Are WebDataset's tars what their index says, and can every image be read?

index = verify_tars("sets/cats")            # raises VerificationError
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fasttrain_data.errors import DataError, VerificationError
from fasttrain_data.fetching import is_url
from fasttrain_data.index import INDEX_NAME
from fasttrain_data.pool import in_order, processes
from fasttrain_data.reader import open_shard
from fasttrain_data.tar_index import (
    RECORDS_NAME,
    TarIndex,
    TarInfo,
    TarView,
    decode_file,
    load_tar_index,
    read_rows,
)
from fasttrain_data.tars import Tars, index_folders, quoted

__all__ = ["verify_tars"]


def verify_tars(
    spec: str,
    *,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> TarIndex:
    """Hash every tar and decode every image of an index that lies where `fasttrain-data index` puts
    it; return the index.

    A tar that fails is named and the others are still checked. Raises DataError when there is no
    valid index, VerificationError when the tars differ from it or have images that cannot be read.
    """
    folders = index_folders(spec)
    found = next(((f, i) for f in folders if (i := load_tar_index(f)) is not None), None)
    if found is None:
        raise DataError(f"{spec} has no index: make it with `fasttrain-data index {quoted(spec)}`")
    folder, index = found
    tars = Tars.of(spec)
    places = dict(zip(tars.names, tars.places, strict=True))
    other = {*places}.symmetric_difference({*(info.name for info in index.shards), *index.empty})
    if other:
        raise VerificationError(
            [f"{name} is not both in {folder / INDEX_NAME} and there" for name in sorted(other)]
        )
    if any(map(is_url, tars.places)):
        raise DataError(f"{spec} is behind a URL: training checks each tar as it is fetched")
    with open_shard(folder, index.records, check_hash=True):
        pass
    view = index.view(resolution=1, channels=3)

    def work(number: int) -> list[str]:
        return _problems(index.shards[number], places[index.shards[number].name], folder, view)

    problems, done = list[str](), 0
    results = in_order(work, len(index.shards), processes(workers, index.images))
    for number, found_here in enumerate(results):
        problems += found_here
        done += index.shards[number].images
        if progress:
            progress("verifying", done, index.images)
    if problems:
        raise VerificationError(problems)
    return index


def _problems(info: TarInfo, place: str, folder: Path, view: TarView) -> list[str]:
    path = Path(place)
    here = info.model_copy(update={"name": path.name})
    problems = []
    try:
        with (folder / RECORDS_NAME).open("rb") as records:
            rows, keys = read_rows(records, info)
        with open_shard(path.parent, here, check_hash=True) as file:
            for key, (offset, size, _) in zip(keys, rows.tolist(), strict=True):
                file.seek(offset)
                try:
                    decode_file(file.read(size), view, f"{place}: {key}")
                except DataError as error:
                    problems.append(str(error))
    except DataError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"cannot read {place}: {error.strerror or error}")
    return problems
