"""Images a second of one core: `fasttrain-data bench` and, beside its readers, the stream that
training reads.

    python -m benchmarks.data_bench data/emoji data/fashion-mnist     # then benchmarks.page

Writes benchmarks/results/data-bench.json. docs/data.md tells how the two sets are made.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch
import webdataset

from benchmarks.data_page import data_bench_part
from benchmarks.demo import machine
from fasttrain.data import ImageStream
from fasttrain_data import load_index
from fasttrain_data.bench import BATCH, REPEATS, Case, cases, measure, on_one_core
from fasttrain_data.records import RECORDS

__all__ = ["stream_cases"]

RESULTS = Path(__file__).parent / "results" / "data-bench.json"
IMAGES, STREAMS = 4000, 4
SHARED = "The machine was shared with other work: rates are images a second of this process's time."


def stream_cases(folder: Path) -> list[Case]:
    """`ImageStream` over the sets that `cases` made in `folder`: whole epochs after the first, and
    an epoch from its start on, when every shard is hashed."""
    found = []
    for record in RECORDS:
        index = load_index(folder / record)
        stream = _opened(folder / record)
        found.append(Case("ImageStream", record, partial(_read, stream), index.bytes))
    for record in ("png", "raw"):
        read = partial(_read_again, folder / record)
        bytes_ = load_index(folder / record).bytes
        found.append(Case("ImageStream, with its start", record, read, bytes_))
    return found


def _opened(path: Path) -> ImageStream:
    return ImageStream(path, batch=BATCH, streams=STREAMS, seed=0)


def _read(stream: ImageStream) -> int:
    return sum(len(batch) for batch in islice(stream, stream.manifest.images // BATCH))


def _read_again(path: Path) -> int:
    return _read(_opened(path))


def measured(path: Path) -> dict[str, Any]:
    """All rows for the images of one set."""
    index = load_index(path)
    with tempfile.TemporaryDirectory() as folder, on_one_core():
        readers = cases(path, Path(folder), IMAGES)
        rows = measure(readers + stream_cases(Path(folder)))
    size = f"{index.resolution}x{index.resolution}"
    return {
        "source": index.source["kind"],
        "size": f"{size} {'grey' if index.channels == 1 else 'colour'}",
        "images": min(IMAGES, index.images),
        "rows": [asdict(row) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sets", type=Path, nargs="+", help="shard sets")
    arguments = parser.parse_args()
    for path in arguments.sets:
        load_index(path)  # what is missing is said before anything
    torch.set_num_threads(1)
    result = {
        "machine": machine(),
        "note": SHARED,
        "batch": BATCH,
        "repeats": REPEATS,
        "versions": {
            module.__name__: str(module.__version__) for module in (numpy, PIL, webdataset)
        },
        "sets": [measured(path) for path in arguments.sets],
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(data_bench_part(result))


if __name__ == "__main__":
    main()
