"""A shard set cut in two, each class in the same proportion.

held_out, rest = split("data/photos64", "data/held-out", "data/train", share=0.1)
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fasttrain_data.conversion import Progress, run_conversion
from fasttrain_data.errors import DataError
from fasttrain_data.index import Index
from fasttrain_data.options import Options
from fasttrain_data.sources import Part, ShardSource

__all__ = ["split"]


def split(
    path: str | Path,
    first: str | Path,
    second: str | Path,
    *,
    share: float,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Index, Index]:
    """Cut a shard set in two: `share` of the images of each class go to `first`, the rest to
    `second`, both stored as the set is, and return their indices. force: replace other shard sets
    there. Raises DataError."""
    if not 0 < share < 1:
        raise DataError(f"--share is {share}: it must lie between 0 and 1")
    if Path(first).resolve() == Path(second).resolve():
        raise DataError(f"{first} is named twice: the two parts need a folder each")
    write = partial(run_conversion, workers=workers, force=force, progress=progress)
    made = []
    for rest, out in ((False, first), (True, second)):
        source = ShardSource(Path(path), Part(share, seed, rest=rest))
        per_shard, record = source.index.options.get("images_per_shard"), source.index.record
        assert record != "latents", "a source holds images"
        options = Options(
            images_per_shard=per_shard if isinstance(per_shard, int) and per_shard > 0 else 1000,
            seed=seed,
            record=record,
        )
        made.append(write(source, out, options).index)
    return made[0], made[1]
