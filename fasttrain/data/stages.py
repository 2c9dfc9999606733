"""The stages of a stream's `webdataset.DataPipeline`, in the order in which they run.

    shard list -> read records -> shuffle windows -> decode images -> the user's own stages

A sample is a dict as in WebDataset: "__key__" (str), "image" (uint8 [C, H, W], read-only), "label"
(int), and two that the user's stages must pass on: "cursor", its position in the stream, and
"skipped", the number of unusable records before it.

An unreadable record keeps its position as a `fault` until images are decoded, so that a damaged
shard or a bad image does not change the order of the others. Images are decoded last: a window
holds encoded records, and after a resume only the following records are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from fasttrain.data.cache import CacheError
from fasttrain.data.order import Cursor, EpochOrder
from fasttrain.data.storage import Storage
from fasttrain.system.errors import is_machine_fault
from fasttrain_data import DataError, Index, decode_record

__all__ = ["DecodeImages", "ReadShards", "Sample", "ShardList", "ShuffleWindows", "fault_of"]

Sample: TypeAlias = dict[str, Any]


class ShardList:
    """Source stage: the shards of one stream from a cursor on, epoch after epoch without end.

    Yields {"epoch", "shard", "skip"}: the shard's number, and the number of its records before the
    window with the cursor. Earlier shards are not opened.
    """

    def __init__(self, order: EpochOrder, stream: int, cursor: Cursor) -> None:
        self.order, self.stream, self.cursor = order, stream, cursor

    def __call__(self) -> Iterator[dict[str, int]]:
        epoch, position = self.cursor
        skip = position - position % self.order.window
        while True:
            for shard in self.order.shards(epoch, self.stream):
                images = self.order.shard_images[shard]
                if skip >= images:
                    skip -= images
                    continue
                yield {"epoch": epoch, "shard": shard, "skip": skip}
                skip = 0
            epoch, skip = epoch + 1, 0


class ReadShards:
    """Stage: shards to records, through the safe reader; the next shard is requested ahead.

    Yields as many samples as the shard has in the index, each with "record" or "fault". A shard's
    SHA-256 is checked when this process reads it for the first time.

    Raises DataError for a shard that holds more, CacheError, Unavailable, and OSError with a file
    name for a fault of the machine.
    """

    def __init__(self, storage: Storage, index: Index) -> None:
        self.storage, self.index = storage, index

    def __call__(self, source: Iterator[dict[str, int]]) -> Iterator[Sample]:
        item = next(source, None)
        while item is not None:
            following = next(source, None)
            if following is not None:
                self.storage.will_need(self.index.shards[following["shard"]])
            yield from self._shard(item)
            item = following

    def _shard(self, item: dict[str, int]) -> Iterator[Sample]:
        info, epoch = self.index.shards[item["shard"]], item["epoch"]
        name, count, more = self.storage.name(info), 0, False
        try:
            with self.storage.open(info) as file:
                for record in self.storage.records(file, info, self.index):
                    count += 1
                    if count > info.images:
                        break
                    if count > item["skip"]:
                        yield {"record": record, "epoch": epoch, "shard": name}
            why = f"{name} has fewer images than the {info.images} of its index"
            more = count > info.images
        except (DataError, OSError) as error:
            why = fault_of(error, name)
        if more:
            raise DataError(f"{name} has more images than the {info.images} of its index")
        for _ in range(max(count, item["skip"]), info.images):
            yield {"fault": why, "epoch": epoch}


def fault_of(error: DataError | OSError, name: str) -> str:
    """What is wrong with a shard of that name. Raises the error where the machine is at fault."""
    if isinstance(error, CacheError):
        raise error
    if isinstance(error, DataError):
        return str(error)
    if is_machine_fault(error):
        raise OSError(error.errno, error.strerror, error.filename or name) from error
    return f"cannot read {name}: {error.strerror or error}"


class ShuffleWindows:
    """Stage: permute each window of consecutive records of an epoch, and stamp the cursor.

    After a resume the first window is read completely and the samples before the cursor are
    dropped, so the stream continues with the next sample.
    """

    def __init__(self, order: EpochOrder, stream: int, cursor: Cursor) -> None:
        self.order, self.stream, self.cursor = order, stream, cursor

    def __call__(self, source: Iterator[Sample]) -> Iterator[Sample]:
        order, stream = self.order, self.stream
        epoch, position = self.cursor
        while True:
            block, drop = divmod(position, order.window)
            start = block * order.window
            size = min(order.window, order.images(epoch, stream) - start)
            window = [next(source) for _ in range(size)]
            permuted = order.window_order(epoch, stream, block, size).tolist()
            for offset in range(drop, size):
                sample = window[permuted[offset]]
                if sample.pop("epoch") != epoch:
                    raise DataError("a shard holds another number of images than in its index")
                sample["cursor"] = Cursor(epoch, start + offset)
                yield sample
            position = start + size
            if position >= order.images(epoch, stream):
                epoch, position = epoch + 1, 0


class DecodeImages:
    """Stage: records to images. Unusable records are counted in the next sample's "skipped".

    Attributes:
        faults: faults of unusable records, each one once, since the list was last emptied.

    Raises DataError after more than `limit` consecutive unusable records.
    """

    def __init__(self, index: Index, limit: int) -> None:
        self.index, self.limit = index, limit
        self.faults: list[str] = []

    def __call__(self, source: Iterator[Sample]) -> Iterator[Sample]:
        skipped = 0
        for sample in source:
            try:
                if "fault" in sample:
                    raise DataError(sample["fault"])
                record = sample["record"]
                index = sample.get("index", self.index)  # of a mixture's set
                image = decode_record(record, index, name=sample["shard"])
                label = record.label
                if "numbers" in sample:
                    label = int(sample["numbers"][label])
            except DataError as error:
                if str(error) not in self.faults:
                    self.faults.append(str(error))
                skipped += 1
                if skipped > self.limit:
                    many = f" (and {self.limit} images before it)" if self.limit else ""
                    raise DataError(f"{error}{many}") from error
                continue
            yield {
                "__key__": record.key,
                "image": image.transpose(2, 0, 1),
                "label": label,
                "cursor": sample["cursor"],
                "skipped": skipped,
            }
            skipped = 0
