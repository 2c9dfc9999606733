"""Where the images are and how they are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
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
    stream each has its share, in an order by the seed. Then `path` is not read, and need not be
    set."""
    resolution: PositiveInt | None = None
    """Pixels a side that such images are made, as they are read; the network's when not given."""
    crop: Literal["center", "adm", "none"] = "center"
    """How such images become squares: as `fasttrain-data convert --crop` has it."""
    streams: PositiveInt | None = None
    """Logical streams that an epoch is divided into; the order of images depends on their number. A
    divisor of `batch`, at most the number of shards. Default: computed from `batch` and the set; a
    resumed run keeps its number."""
    order: Literal["epochs", "resampled"] = "epochs"
    """`epochs`: in each epoch all shards are dealt to the streams, so every image occurs once; a
    stream with fewer images than others starts its next epoch before them. `resampled`: each stream
    draws from all shards with replacement."""
    window: PositiveInt = 512
    """Images that are shuffled together within a stream."""
    workers: NonNegativeInt | None = None
    """Reader processes of each training process; they change nothing but the time. Default: none on
    a CPU, up to two on a GPU."""
    max_skipped: NonNegativeInt = 100
    """Unreadable images that the whole run tolerates, because they or their shards are damaged; one
    more stops the run with a checkpoint."""
    cache: UserPath | None = None
    """Folder for the shards of a URL. Default: ~/.cache/fasttrain/shards."""
    cache_gigabytes: PositiveFloat = 50
    """Size limit of that folder."""
    reader_timeout: PositiveFloat = 600
    """Seconds to wait for a batch before its reader counts as hung and the run stops with a
    checkpoint and exit status 75. Keep it below engine.timeout_minutes, the longest time that other
    processes wait."""
    timeout: PositiveFloat = 30
    """Seconds to wait for a server's answer before a request fails."""
    attempts: PositiveInt = 5
    """Consecutive failures of a server, or of the machine to read a folder, before the run
    stops."""
    any_protocol: bool = False
    """Also open URLs of every other protocol that fsspec knows."""
    storage: dict[str, Any] = Field(default_factory=dict)
    """Options of fsspec's file system, such as {anon: true}. Not for credentials, because settings
    are saved with the run; fsspec reads credentials from the environment or a profile."""

    @model_validator(mode="before")
    @classmethod
    def _mix_needs_no_path(cls, values: Any) -> Any:
        match values:
            case {"mix": [MixedSet() as first, *_]} if "path" not in values:
                return values | {"path": first.path}
            case {"mix": [{"path": path}, *_]} if "path" not in values:
                return values | {"path": path}
        return values

    def sets(self) -> tuple[MixedSet, ...]:
        """The sets that are read."""
        return self.mix or (MixedSet(path=self.path, index=self.index),)
