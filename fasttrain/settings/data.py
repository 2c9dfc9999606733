"""Where the images are and how they are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from fasttrain.settings.base import DataPath, Settings, UserPath


class MixedSet(Settings):
    """A set of a mixture."""

    path: DataPath
    """As `data.path`."""
    weight: PositiveFloat = 1.0
    """Its share of the images, beside the others' weights."""
    index: DataPath | None = None
    """As `data.index`."""


class DataSettings(Settings):
    """Where the images are and how they are read."""

    path: DataPath
    """Folder of shards with an `index.json`, as `fasttrain-data convert` writes it, or its URL:
    https://, s3://, gs:// or hf://. Or WebDataset's tars as others write them, once `fasttrain-data
    index` has read them: a folder, a brace expansion (`set-{000000..000146}.tar`), URLs of these,
    or a list."""
    index: DataPath | None = None
    """Folder or URL of the index of such tars; where `fasttrain-data index` puts it when not
    given."""
    mix: tuple[MixedSet, ...] = ()
    """Several sets, `[{path: ..., weight: 3}, {path: ..., weight: 1}]`: of every 10,000 images of a
    stream each has its share, in an order by the seed. `path` is not read then."""
    resolution: PositiveInt | None = None
    """Pixels a side that such images are made, as they are read; the network's when not given."""
    crop: Literal["center", "adm", "none"] = "center"
    """How such images become squares: as `fasttrain-data convert --crop` has it."""
    streams: PositiveInt | None = None
    """Logical streams that the epoch is dealt to, of which the order of images depends; a divisor
    of batch, and at most one a shard. When not given, it follows from batch and the set, and a
    resumed run keeps what it has."""
    order: Literal["epochs", "resampled"] = "epochs"
    """`epochs`: all shards are dealt to the streams anew in each epoch, so every image comes once
    in it; a stream that has fewer images than others is in its next epoch before them.
    `resampled`: each stream draws shards from all with replacement."""
    window: PositiveInt = 512
    """Images that are shuffled together within a stream."""
    workers: NonNegativeInt | None = None
    """Processes that read ahead, for each training process; they change nothing. None on a CPU, up
    to two on a GPU when not given."""
    max_skipped: NonNegativeInt = 100
    """So many images, over the whole run, may be passed over because they or their shards are
    damaged; one more stops the run with a checkpoint."""
    cache: UserPath | None = None
    """Folder for the shards of a URL; ~/.cache/fasttrain/shards when not given."""
    cache_gigabytes: PositiveFloat = 50
    """What that folder may hold."""
    reader_timeout: PositiveFloat = 600
    """Seconds that a batch may take to be read. Then its reader counts as hung, and the run stops
    with a checkpoint and exit status 75. Keep it below engine.timeout_minutes: other processes wait
    for no longer than that."""
    timeout: PositiveFloat = 30
    """Seconds without an answer after which a request to a URL is given up."""
    attempts: PositiveInt = 5
    """Consecutive failures of a server, or of the machine to read a folder, before giving up."""
    any_protocol: bool = False
    """Open URLs of whatever other protocol fsspec knows, too."""
    storage: dict[str, Any] = Field(default_factory=dict)
    """Options of fsspec's file system, such as {anon: true}. No credentials: they are saved with
    the run; fsspec finds those in the environment or in a profile."""

    def sets(self) -> tuple[MixedSet, ...]:
        """Those that are read."""
        return self.mix or (MixedSet(path=self.path, index=self.index),)
