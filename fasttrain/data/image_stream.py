"""The endless stream of batches from a shard set, with an exact cursor.

    stream = ImageStream("data/digits", batch=64, streams=4, seed=0)
    batch = next(stream)                     # images float32 [64, 1, 8, 8], class_labels [64, 10]
    state = stream.state_dict()              # JSON; load_state_dict goes on at the next sample

Each logical stream is a `webdataset.DataPipeline`: `ShardList`, `ReadShards`, `ShuffleWindows`, and
then the user's `stages`. What order the images come in is told in `order.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from fasttrain.data.batch import Batch
from fasttrain.data.order import Cursor, EpochOrder
from fasttrain.data.stages import ReadShards, Sample, ShardCache, ShardList, ShuffleWindows
from fasttrain.errors import UserError
from fasttrain_data import DataError, Index, load_index

__all__ = ["ImageStream"]

Stage = Callable[[Iterator[Sample]], Iterator[Sample]]


class ImageStream:
    """Iterator of `Batch`: this rank's share of each global batch, without end.

    Args:
        path: folder of a shard set (`fasttrain-data convert`).
        batch: images in a global batch, over all ranks; a multiple of `streams`.
        streams: logical streams, a multiple of `world_size`; at most one a shard.
        seed: of the order of images.
        rank, world_size: which contiguous block of streams to read.
        first_index: index in the run of the first image of batch 0 (`state["batches"]` adds to it).
        resolution, channels, label_dim: what the settings expect of the set; None expects nothing.
            `label_dim=0` asks for no class labels whatever the set has.
        window: records that are shuffled together within a stream.
        cache_bytes: decoded shards are kept in memory up to this size.
        stages: extra `webdataset.DataPipeline` stages over the decoded samples (see `stages.py`),
            for example `webdataset.map(flip)`. They must yield one sample for each, in order, with
            "image" of the same shape and dtype, and "cursor" left as it is.

    Raises UserError, one line, when the set is missing or not what the settings ask for; while
    reading, when a shard is not what the index says.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        batch: int,
        streams: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_index: int = 0,
        resolution: int | None = None,
        channels: int | None = None,
        label_dim: int | None = None,
        window: int = 512,
        cache_bytes: int = 256 << 20,
        stages: Sequence[Stage] = (),
    ) -> None:
        _check_division(batch, streams, seed, rank, world_size, window)
        self.path = Path(path)
        try:
            self.manifest: Index = load_index(path)
            self.manifest.check_files(path)
        except DataError as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        _check_expectations(self.path, self.manifest, resolution, channels, streams)
        self.label_dim = _label_dim(self.path, self.manifest, label_dim)
        self.batch, self.streams, self.first_index = batch, streams, first_index
        self.world_size, self.rank = world_size, rank
        self.window = window
        self._deal(seed)
        per_rank = streams // world_size
        self._own = range(rank * per_rank, (rank + 1) * per_rank)
        self._stages = tuple(stages)
        self._reader = ReadShards(self.path, self.manifest, ShardCache(cache_bytes))
        self._batches = 0
        self._start({stream: Cursor(0, 0) for stream in self._own})

    def _deal(self, seed: int) -> None:
        shards = [shard.images for shard in self.manifest.shards]
        self.order = EpochOrder(shards, streams=self.streams, seed=seed, window=self.window)

    def _start(self, cursors: dict[int, Cursor]) -> None:
        self._cursors = cursors
        self._iterators = {
            stream: iter(self.pipeline(stream, cursor)) for stream, cursor in cursors.items()
        }

    def pipeline(self, stream: int, cursor: Cursor) -> webdataset.DataPipeline:
        """The DataPipeline of one logical stream from a cursor on: endless samples."""
        return webdataset.DataPipeline(
            ShardList(self.order, stream, cursor),
            self._reader,
            ShuffleWindows(self.order, stream, cursor),
            *self._stages,
        )

    def __iter__(self) -> ImageStream:
        return self

    def __next__(self) -> Batch:
        """Read the next batch. Raises UserError when a shard or a stage is at fault."""
        share = self.batch // self.world_size
        side, channels = self.manifest.resolution, self.manifest.channels
        pixels = np.empty((share, channels, side, side), dtype=np.uint8)
        labels = np.empty(share, dtype=np.int64)
        try:
            self._fill(pixels, labels)
        except DataError as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise UserError(f"cannot read shards of {self.path}: {error}") from error
        index = self.first_index + self._batches * self.batch + self.rank * share
        self._batches += 1
        images = torch.from_numpy(pixels).float().div_(127.5).sub_(1)
        return Batch(
            images=images,
            class_labels=_one_hot(labels, self.label_dim),
            index=torch.arange(index, index + share, dtype=torch.int64),
        )

    def _fill(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Take batch / streams samples of each own stream, in stream order."""
        row = 0
        cursors = dict(self._cursors)
        for stream, samples in self._iterators.items():
            cursor = cursors[stream]
            for _ in range(self.batch // self.streams):
                sample = next(samples, None)
                if sample is None or sample.get("cursor") != cursor:
                    raise UserError(
                        "a stage dropped, added or reordered samples: stages must yield one for "
                        "each, in order, with their cursor"
                    )
                image = sample["image"]
                if image.shape != pixels.shape[1:] or image.dtype != np.uint8:
                    raise UserError(
                        f"a stage made an image of {image.dtype} {list(image.shape)}: "
                        f"it must stay uint8 {list(pixels.shape[1:])}"
                    )
                pixels[row], labels[row] = image, sample["label"]
                cursor = self.order.advance(cursor, stream)
                row += 1
            cursors[stream] = cursor
        self._cursors = cursors

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the last batch, JSON: batches so far, the order's seed, and each own
        stream's position.

        Merge the "streams" of all ranks for a checkpoint.
        """
        return {
            "batches": self._batches,
            "seed": self.order.seed,
            "streams": {
                str(stream): {"epoch": cursor.epoch, "position": cursor.position}
                for stream, cursor in self._cursors.items()
            },
            "content_sha256": self.manifest.content_sha256,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a cursor: the merged state of all ranks of any world size.

        Raises UserError when the cursor is of other streams or of another shard set.
        """
        content = state.get("content_sha256", self.manifest.content_sha256)
        if content != self.manifest.content_sha256:
            raise UserError(
                f"{self.path} is not the shard set this run was made with: name that one, or start "
                "a new run"
            )
        found: Mapping[str, Mapping[str, int]] = state["streams"]
        if set(found) != {str(stream) for stream in range(self.streams)}:
            raise UserError(
                f"the saved cursor has {len(found)} streams, the settings have {self.streams}: "
                "keep batch and norm_group when you resume a run"
            )
        self._deal(int(state.get("seed", self.order.seed)))
        cursors = {}
        for stream in self._own:
            cursor = Cursor(**found[str(stream)])
            if min(cursor) < 0 or cursor.position >= self.order.images(cursor.epoch, stream):
                raise UserError(
                    f"the saved cursor of stream {stream} is outside the shards of {self.path}"
                )
            cursors[stream] = cursor
        self._batches = int(state["batches"])
        self._start(cursors)


def _check_division(
    batch: int, streams: int, seed: int, rank: int, world_size: int, window: int
) -> None:
    for name, value, least in (
        ("batch", batch, 1),
        ("streams", streams, 1),
        ("seed", seed, 0),
        ("world_size", world_size, 1),
        ("window", window, 1),
    ):
        if value < least:
            raise UserError(f"{name} is {value}: it must be at least {least}")
    if batch % streams:
        raise UserError(f"batch {batch} does not divide into {streams} streams of equal size")
    if streams % world_size:
        sizes = ", ".join(str(n) for n in range(1, streams + 1) if streams % n == 0)
        raise UserError(
            f"{streams} streams do not divide over {world_size} processes: use one of {sizes}"
        )
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is not in 0 to {world_size - 1}")


def _check_expectations(
    path: Path, index: Index, resolution: int | None, channels: int | None, streams: int
) -> None:
    if resolution is not None and resolution != index.resolution:
        raise UserError(
            f"the images of {path} are {index.resolution}x{index.resolution}, the settings say "
            f"{resolution}x{resolution}: convert again with --resolution {resolution}"
        )
    if channels is not None and channels != index.channels:
        raise UserError(
            f"the images of {path} have {index.channels} channels, the settings say {channels}: "
            f"convert again with --channels {channels}"
        )
    if len(index.shards) < streams:
        if index.images < streams:
            raise UserError(f"{path} has {index.images} images, fewer than the {streams} streams")
        raise UserError(
            f"{path} has {len(index.shards)} shards, fewer than the {streams} streams: "
            f"convert again with --images-per-shard {index.images // streams}"
        )


def _label_dim(path: Path, index: Index, expected: int | None) -> int:
    """Width of the one-hot labels: the number of classes; 0 with one class or when not wanted."""
    found = len(index.classes) if len(index.classes) > 1 else 0
    if expected is None:
        return found
    if expected not in (0, found):
        raise UserError(
            f"{path} has {len(index.classes)} classes, the settings say label_dim {expected}: "
            f"set it to {found}" + (", or to 0 to train without labels" if found else "")
        )
    return expected


def _one_hot(labels: np.ndarray, label_dim: int) -> torch.Tensor | None:
    if label_dim == 0:
        return None
    one_hot = np.zeros((len(labels), label_dim), dtype=np.float32)
    one_hot[np.arange(len(labels)), labels] = 1
    return torch.from_numpy(one_hot)
