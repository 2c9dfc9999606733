"""Images a second of one core, by storage and reader: the same images for all, shuffled and in
batches of decoded uint8 images with their labels.

    run_bench("data/photos64", images=4000, out=None)

Ours is compared with webdataset's own pipeline over the same shards, and with a plain PyTorch
DataLoader over what EDM's dataset tool makes (a zip of PNG files) and over a folder of PNG files.
Passes of all take turns, so that what else a machine does hits all alike, and what counts is the
time that this process had a core.
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table

from fasttrain_data.conversion import run_conversion
from fasttrain_data.errors import DataError
from fasttrain_data.index import Index, load_index
from fasttrain_data.options import Options
from fasttrain_data.permutation import WINDOW, permutation
from fasttrain_data.reader import decode_record, open_shard, read_records
from fasttrain_data.records import RECORDS, encode_image
from fasttrain_data.sources.base import ArraySource

__all__ = ["BATCH", "Case", "Row", "cases", "describe", "measure", "on_one_core", "run_bench"]

BATCH = 64
SHUFFLED = 512
REPEATS = 5


@dataclass(frozen=True)
class Row:
    """What was measured: images a second of a core, the median of `passes`, and of the clock."""

    reader: str
    storage: str
    images_per_second: float
    passes: list[float]
    clock_passes: list[float]
    bytes: int


@dataclass(frozen=True)
class Case:
    """A reader over a storage: `read` goes over all images once and returns how many there were."""

    reader: str
    storage: str
    read: Callable[[], int]
    bytes: int


class _Memory(ArraySource):
    """The first images of a set, held in memory."""

    def __init__(self, path: Path, images: int) -> None:
        index = load_index(path)
        self.shape = (index.resolution, index.resolution, index.channels)
        self.classes = [info.name for info in index.classes]
        self._pixels: list[npt.NDArray[np.uint8]] = []
        labels: list[int] = []
        for shard in index.shards:
            with open_shard(path, shard, check_hash=False) as file:
                for record in read_records(file, index, name=shard.name):
                    self._pixels.append(decode_record(record, index, name=shard.name))
                    labels.append(record.label)
            if len(labels) >= images:
                break
        self.labels: Sequence[int] = labels[:images]
        self.identity = {"kind": "bench", "images": len(self.labels)}

    def member(self, item: int) -> str:
        return f"image {item}"

    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(self._pixels[item])


def run_bench(path: str | Path, *, images: int, out: Path | None) -> list[Row]:
    """Measure, print a table, and write the numbers as JSON to `out`. Raises DataError."""
    if images < BATCH:
        raise DataError(f"--images is {images}: it must be at least {BATCH}")
    with tempfile.TemporaryDirectory() as folder, on_one_core():
        index = load_index(path)
        rows = measure(cases(Path(path), Path(folder), images))
    table = Table("reader", "stored as", title=f"{path}, {index.resolution}x{index.resolution}")
    for name in ("images/s", "MB"):
        table.add_column(name, justify="right")
    for row in rows:
        rate, size = f"{row.images_per_second:,.0f}", f"{row.bytes / 1e6:,.1f}"
        table.add_row(row.reader, row.storage, rate, size)
    Console(markup=False, highlight=False).print(table)
    print(f"of one core of {describe()}; median of {REPEATS} passes over images in memory")
    if out is not None:
        found = {"machine": describe(), "rows": [asdict(row) for row in rows]}
        out.write_text(json.dumps(found, indent=1) + "\n")
    return rows


def measure(cases: Sequence[Case]) -> list[Row]:
    """A pass of each to warm up (files are in memory then), and `REPEATS` that count."""
    core: list[list[float]] = [[] for _ in cases]
    clock: list[list[float]] = [[] for _ in cases]
    for repeat in range(REPEATS + 1):
        for place, case in enumerate(cases):
            began = time.process_time(), time.perf_counter()
            count = case.read()
            if repeat:
                core[place].append(round(count / (time.process_time() - began[0]), 1))
                clock[place].append(round(count / (time.perf_counter() - began[1]), 1))
    return [
        Row(case.reader, case.storage, statistics.median(passes), passes, clocked, case.bytes)
        for case, passes, clocked in zip(cases, core, clock, strict=True)
    ]


def cases(path: Path, folder: Path, images: int) -> list[Case]:
    """Every reader over every storage, made in `folder`; readers whose package is not installed are
    left out with a word."""
    source = _Memory(path, images)
    per_shard = max(1, -(-len(source) // 8))
    made: dict[str, Index] = {}
    found = []
    for record in RECORDS:
        options = Options(images_per_shard=per_shard, record=record)
        index = made[record] = run_conversion(source, folder / record, options).index
        found.append(Case("fasttrain_data", record, _ours(folder / record, index), index.bytes))
    for package, more in (("webdataset", _webdataset_cases), ("torch", _loader_cases)):
        try:
            found += more(source, folder, made)
        except ImportError:
            print(f"{package} is not installed: left out")
    return found


def _ours(folder: Path, index: Index) -> Callable[[], int]:
    """The reader of this package, with the smallest loop around it that shuffles and batches."""

    def samples() -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
        for number in permutation(len(index.shards), WINDOW, 0).tolist():
            name = index.shards[number].name
            with open_shard(folder, index.shards[number], check_hash=False) as file:
                records = read_records(file, index, name=name)
                for number, window in enumerate(_groups(records, SHUFFLED)):
                    for place in permutation(len(window), WINDOW, number).tolist():
                        record = window[place]
                        yield decode_record(record, index, name=name), record.label

    def read() -> int:
        count = 0
        for batch in _groups(samples(), BATCH):
            images = np.stack([image for image, _ in batch])
            labels = np.asarray([label for _, label in batch])
            assert len(images) == len(labels)
            count += len(labels)
        return count

    return read


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def _webdataset_cases(source: _Memory, folder: Path, made: dict[str, Index]) -> list[Case]:
    import webdataset

    def reader(record: str) -> Callable[[], int]:
        urls = [str(folder / record / shard.name) for shard in made[record].shards]
        kind = "rgb8" if source.shape[-1] == 3 else "l8"

        def read() -> int:
            dataset = webdataset.WebDataset(urls, shardshuffle=100, seed=0)
            if record == "raw":
                chunks = dataset.decode().to_tuple("images.npy", "labels.npy")
                samples = chunks.compose(webdataset.filters.unbatched()).shuffle(SHUFFLED)
            else:
                samples = dataset.shuffle(SHUFFLED).decode(kind).to_tuple(record, "cls")
            return sum(len(labels) for _, labels in samples.batched(BATCH))

        return read

    return [Case("webdataset", record, reader(record), made[record].bytes) for record in RECORDS]


def _loader_cases(source: _Memory, folder: Path, _: dict[str, Index]) -> list[Case]:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)

    def reader(dataset: Any) -> Callable[[], int]:
        loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
        return lambda: sum(len(labels) for _, labels in loader)

    found = []
    for storage, write in (("zip of PNG", _write_zip), ("folder of PNG", _write_folder)):
        dataset, size = write(source, folder)
        found.append(Case("DataLoader", storage, reader(dataset), size))
    return found


class _Files:
    """A map-style data set of PNG files, as everybody writes it: uint8 [C, H, W] and a label."""

    def __init__(self, open_file: Callable[[int], Any], labels: Sequence[int]) -> None:
        self._open, self._labels = open_file, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, item: int) -> tuple[npt.NDArray[np.uint8], int]:
        with self._open(item) as file:
            image = np.array(Image.open(file))
        image = image[..., None] if image.ndim == 2 else image
        return np.ascontiguousarray(image.transpose(2, 0, 1)), self._labels[item]


def _write_zip(source: _Memory, folder: Path) -> tuple[_Files, int]:
    path = folder / "dataset.zip"
    names = [f"00000/img{item:08d}.png" for item in range(len(source))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for item, name in enumerate(names):
            archive.writestr(name, encode_image(source.pixels(item)))
    opened = zipfile.ZipFile(path)
    return _Files(lambda item: opened.open(names[item]), source.labels), path.stat().st_size


def _write_folder(source: _Memory, folder: Path) -> tuple[_Files, int]:
    (folder / "files").mkdir()
    names = [folder / "files" / f"{item:08d}.png" for item in range(len(source))]
    for item, name in enumerate(names):
        name.write_bytes(encode_image(source.pixels(item)))
    size = sum(name.stat().st_size for name in names)
    return _Files(lambda item: io.FileIO(names[item]), source.labels), size


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this process on one core, and let it go again."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def describe() -> str:
    """The machine's processor and Python's version."""
    model = platform.processor() or "a processor without a name"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(":")[2]
    except (OSError, StopIteration):
        pass
    return f"{model.strip()}, Python {platform.python_version()}"
