"""A set of five million images, really made, and what 64 ranks with 4 readers each make of it.

    python -m benchmarks.data_scale [--images 5000000] [--folder TMP]      # then benchmarks.page

Conversion and verification: seconds, and the peak memory of all their processes. Reading: is every
image of an epoch read exactly once, how evenly are images dealt, how long does a rank take to its
first batch and to the next one after a resume, does its memory stay flat. The set (430 MB for five
million) lies in a temporary folder and is removed. Writes benchmarks/results/data-scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.data_page import data_scale_part
from benchmarks.demo import machine
from benchmarks.synthetic_set import numbers_of
from fasttrain.data import ImageStream
from fasttrain.data.order import Cursor, EpochOrder
from fasttrain_data import Index, load_index, parse_index

__all__ = [
    "Rank",
    "balance",
    "every_image_once",
    "index_row",
    "long_read",
    "resampled",
    "start_row",
]

RESULTS = Path(__file__).parent / "results" / "data-scale.json"
WORLD, READERS, STREAMS, BATCH = 64, 4, 1024, 4096
EPOCHS = 10

T = TypeVar("T")


def memory(pid: int) -> int:
    """Bytes of a process and all below it, those of mapped files, such as libraries, aside; pages
    that several share count once."""
    found = 0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                found += int(line.split()[1]) << 10
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += sum(memory(int(child)) for child in children.read_text().split())
    return found


def in_a_process(*arguments: object) -> tuple[float, int]:
    """Run `benchmarks.synthetic_set`: the seconds it prints, the peak memory of its processes."""
    command = [sys.executable, "-m", "benchmarks.synthetic_set", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.02)
    assert process.stdout is not None
    assert process.returncode == 0
    return float(process.stdout.read()), peak


def made(folder: Path, images: int) -> dict[str, Any]:
    """Convert and verify a set of this many images."""
    convert, convert_memory = in_a_process("convert", folder, images)
    verify, verify_memory = in_a_process("verify", folder)
    return {
        "images": images,
        "shard_bytes": load_index(folder).bytes,
        "convert_seconds": convert,
        "convert_memory": convert_memory,
        "verify_seconds": verify,
        "verify_memory": verify_memory,
    }


def timed(work: Callable[[], T], repeats: int = 5) -> tuple[float, T]:
    """Median seconds, and the last value."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), value


def index_row(index: Index, images: int, streams: int = STREAMS) -> dict[str, Any]:
    """Of an index like this one for this many images: its size, and times to load it and to deal an
    epoch."""
    each = index.shards[0]
    numbers = range(-(-images // each.images))
    left = [min(each.images, images - number * each.images) for number in numbers]
    shards = [
        each.model_copy(update={"name": f"shard-{number:06d}.tar", "images": count})
        for number, count in zip(numbers, left, strict=True)
    ]
    classes = [index.classes[0].model_copy(update={"images": images})]
    of_all = {"images": images, "shards": tuple(shards), "classes": tuple(classes)}
    text = index.model_copy(update=of_all).to_json().encode()
    load, found = timed(lambda: parse_index(text, "index.json"))
    counts = [shard.images for shard in found.shards]

    def deal() -> int:
        return EpochOrder(counts, streams=streams, seed=0, window=512).images(0, 0)

    return {
        "images": images,
        "shards": len(shards),
        "bytes": len(text),
        "load_seconds": load,
        "deal_seconds": timed(deal)[0],
    }


def balance(index: Index, streams: int, readers: int, ranks: int) -> dict[str, Any]:
    """The least and the most images that streams, readers and ranks have in an epoch, and ranks in
    `EPOCHS` epochs."""
    counts = [shard.images for shard in index.shards]
    order = EpochOrder(counts, streams=streams, seed=0, window=512)
    images = np.array([[order.images(e, s) for s in range(streams)] for e in range(EPOCHS)])

    def spread(of: Any, parts: int) -> list[int]:
        sums = of.reshape(len(of), parts, -1).sum(-1)
        return [int(sums.min()), int(sums.max())]

    return {
        "streams": streams,
        "stream": spread(images, streams),
        "reader": spread(images, readers),
        "rank": spread(images, ranks),
        "rank_all_epochs": spread(images.sum(0, keepdims=True), ranks),
    }


def resampled(index: Index, streams: int) -> dict[str, Any]:
    """How often shards are drawn, with replacement, while `EPOCHS` epochs' worth is read."""
    counts = [shard.images for shard in index.shards]
    order = EpochOrder(counts, streams=streams, seed=0, window=512, resampled=True)
    draws = EPOCHS * len(counts) // streams
    drawn = np.bincount(
        [order.shards(epoch, stream)[0] for epoch in range(draws) for stream in range(streams)],
        minlength=len(counts),
    )
    return {
        "streams": streams,
        "mean": float(drawn.mean()),
        "shard": np.sort(drawn)[[0, -1]].tolist(),
    }


def every_image_once(path: Path, streams: int) -> dict[str, Any]:
    """Read the first epoch of every stream, and count how often each image comes."""
    stream = ImageStream(path, batch=streams, streams=streams, seed=0)
    seen = np.zeros(stream.manifest.images, np.uint8)
    began = time.perf_counter()
    for number in range(streams):
        samples = iter(stream.pipeline(number, Cursor(0, 0)))
        images = [s["image"] for s in islice(samples, stream.order.images(0, number))]
        np.add.at(seen, numbers_of(np.stack(images)), 1)
    seconds = time.perf_counter() - began
    return {"images": len(seen), "once": int((seen == 1).sum()), "seconds": seconds}


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Rank 0 of this many, with its reading."""

    path: Path
    workers: int
    resampled: bool
    world: int = WORLD
    streams: int = STREAMS
    batch: int = BATCH

    def open(self, state: Mapping[str, Any] | None = None) -> ImageStream:
        """Its stream, at a cursor."""
        stream = ImageStream(
            self.path,
            batch=self.batch,
            streams=self.streams,
            seed=0,
            world_size=self.world,
            workers=self.workers,
            resampled=self.resampled,
        )
        if state is not None:
            stream.load_state_dict(state)
        return stream

    def first(self, state: Mapping[str, Any] | None = None) -> torch.Tensor:
        """The images of the first batch."""
        stream = self.open(state)
        images = next(stream).images
        stream.close()
        return images

    @property
    def about(self) -> dict[str, Any]:
        order = "resampled" if self.resampled else "epochs"
        return {"order": order, "workers": self.workers}


def start_row(rank: Rank, at: float = 0.5) -> dict[str, Any]:
    """Seconds to the first batch, and to the one after a cursor at the share `at` of an epoch; is
    that the batch that comes there without a break?"""
    start = timed(rank.first)[0]
    stream = rank.open()
    for _ in range(max(1, int(at * stream.manifest.images / rank.batch))):
        next(stream)
    state = stream.state_dict()
    others = range(rank.streams // rank.world, rank.streams)  # which it does not read
    state["streams"] |= {str(other): state["streams"]["0"] for other in others}
    following = next(stream).images
    stream.close()
    resume, images = timed(lambda: rank.first(state))
    same = bool(torch.equal(images, following))
    return {**rank.about, "start_seconds": start, "resume_seconds": resume, "same": same}


def long_read(rank: Rank, images: int, points: int = 8) -> dict[str, Any]:
    """Memory of a rank with its readers while it reads this many images, at equal distances."""
    share = rank.batch // rank.world
    batches = images // share // points
    found = []
    stream = rank.open()
    began = time.perf_counter()
    for _ in range(points):
        for _ in range(batches):
            next(stream)
        found.append(memory(os.getpid()))
    seconds = time.perf_counter() - began
    stream.close()
    return {**rank.about, "images": points * batches * share, "seconds": seconds, "at": found}


def measured(folder: Path, images: int) -> dict[str, Any]:
    """Everything; the sets are made in `folder`."""
    sizes = [made(folder / f"of-{count}", count) for count in (images // 10, images)]
    path = folder / f"of-{images}"
    index = load_index(path)
    ranks = [
        Rank(path=path, workers=workers, resampled=resampled)
        for resampled in (False, True)
        for workers in (0, READERS)
    ]
    return {
        "made": sizes,
        "index": [index_row(index, count) for count in (1_281_167, 5_000_000, 50_000_000)],
        "balance": [balance(index, n, WORLD * READERS, WORLD) for n in (256, STREAMS)],
        "resampled": resampled(index, STREAMS),
        "once": every_image_once(path, STREAMS),
        "start": [start_row(rank) for rank in ranks],
        "memory": [long_read(rank, images // 5) for rank in ranks],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=5_000_000)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measured(Path(folder), arguments.images)
    about = {
        "machine": machine(),
        "note": "The machine was shared with other work.",
        "world": WORLD,
        "readers": READERS,
        "streams": STREAMS,
        "batch": BATCH,
        "epochs": EPOCHS,
    }
    kept = {"foreign": json.loads(RESULTS.read_text()).get("foreign")} if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**about, **found, **kept}, indent=1) + "\n")
    print(data_scale_part(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
