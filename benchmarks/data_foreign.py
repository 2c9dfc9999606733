"""WebDataset's tars as others write them: images a second of one core, beside webdataset's own
pipeline and a PyTorch DataLoader; and what an index of millions of images takes.

    python -m benchmarks.data_foreign               # benchmarks/results/data-foreign.json
    python -m benchmarks.data_foreign --scale       # `foreign` in data-scale.json
    python -m benchmarks.page

The pictures are made by the script: smooth noise, as JPEG files of several sizes that come to what
photographs have, a few thousand of them; webdataset's ShardWriter writes the tars. All readers crop
the centre square, resize it by Lanczos and batch uint8 images with their labels.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
import webdataset
from PIL import Image

from benchmarks.data_page import data_foreign_part, foreign_scale_part
from benchmarks.data_scale import RESULTS as SCALE
from benchmarks.data_scale import memory
from benchmarks.demo import machine
from fasttrain.data import ImageStream, open_storage
from fasttrain.data.foreign import View
from fasttrain_data.bench import BATCH, REPEATS, Case, measure, on_one_core
from fasttrain_data.images import Wanted, read_pixels
from fasttrain_data.indexing import run_indexing

__all__ = ["measured", "photographs", "scale_row"]

RESULTS = Path(__file__).parent / "results" / "data-foreign.json"
SHARED = "The machine was shared with other work: rates are images a second of this process's time."
SHUFFLED, STREAMS, RESOLUTION = 512, 4, 64
SETS = (
    ("photographs, about 400x300", (400, 300), 600),
    ("thumbnails, about 80x64", (80, 64), 3000),
)


def photographs(size: tuple[int, int], count: int) -> list[bytes]:
    """JPEG files of sizes about this one: noise of few and of many details."""
    random, found = np.random.default_rng(0), []
    for _ in range(count):
        width, height = (int(side * random.uniform(0.9, 1.3)) for side in size)
        picture = np.zeros((height, width, 3))
        for scale, weight in ((32, 60.0), (8, 25.0), (2, 8.0)):
            small = random.normal(0, weight, (height // scale + 2, width // scale + 2, 3))
            small = np.clip(small + 128, 0, 255).astype(np.uint8)
            large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            picture += np.asarray(large, np.float64) - 128
        pixels = np.clip(picture + 128, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def write(folder: Path, pictures: list[bytes]) -> None:
    """As tars in `tars`, by webdataset's own writer, and as files in `files`."""
    (folder / "tars").mkdir()
    (folder / "files").mkdir()
    pattern = str(folder / "tars/set-%06d.tar")
    each = -(-len(pictures) // 8)
    with webdataset.ShardWriter(pattern, maxcount=each, verbose=0) as writer:
        for number, data in enumerate(pictures):
            writer.write({"__key__": f"{number:08d}", "jpg": data, "cls": number % 10})
            (folder / f"files/{number:08d}.jpg").write_bytes(data)


def made_square(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The centre square, resized, uint8 [C, H, W]: what users of these libraries write."""
    image, side = image.convert("RGB"), min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    image = image.resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


class Files:
    """A map-style data set of JPEG files."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, item: int) -> tuple[npt.NDArray[np.uint8], int]:
        with self._paths[item].open("rb") as file:
            return made_square(Image.open(file)), item % 10


def _opened(tars: Path) -> ImageStream:
    storage = open_storage(tars, view=View(resolution=RESOLUTION, channels=3))
    return ImageStream(storage, batch=BATCH, streams=STREAMS, seed=0)


def _read(stream: ImageStream) -> int:
    return sum(len(batch) for batch in islice(stream, stream.manifest.images // BATCH))


def _webdataset(tars: Path) -> int:
    urls = sorted(map(str, tars.glob("*.tar")))
    dataset = webdataset.WebDataset(urls, shardshuffle=100, seed=0).shuffle(SHUFFLED)
    samples = dataset.decode("pil").to_tuple("jpg", "cls").map_tuple(made_square, int)
    return sum(len(labels) for _, labels in samples.batched(BATCH))


def cases(folder: Path) -> list[Case]:
    """Every reader over the same pictures."""
    from torch.utils.data import DataLoader

    tars, files = folder / "tars", folder / "files"
    size = sum(path.stat().st_size for path in tars.glob("*.tar"))
    loose = sum(path.stat().st_size for path in files.iterdir())
    loader: Any = DataLoader(Files(files), batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]
    stream = _opened(tars)
    return [
        Case("ImageStream", "tars of others", partial(_read, stream), size),
        Case("ImageStream, first epoch", "tars of others", lambda: _read(_opened(tars)), size),
        Case("webdataset", "tars of others", partial(_webdataset, tars), size),
        Case("DataLoader", "folder of JPEG", lambda: sum(len(n) for _, n in loader), loose),
    ]


def measured(title: str, size: tuple[int, int], count: int) -> dict[str, Any]:
    """All rows for pictures of a size."""
    pictures = photographs(size, count)
    with tempfile.TemporaryDirectory() as name, on_one_core():
        folder = Path(name)
        write(folder, pictures)
        seconds, _ = _seconds(lambda: run_indexing(str(folder / "tars"), workers=1))
        _same_pixels(folder, pictures[0])
        rows = measure(cases(folder))
    return {
        "title": title,
        "images": count,
        "bytes": sum(map(len, pictures)),
        "index_images_per_second": count / seconds,
        "rows": [asdict(row) for row in rows],
    }


def _same_pixels(folder: Path, picture: bytes) -> None:
    """All do the same work."""
    ours = read_pixels(io.BytesIO(picture), Wanted(channels=3, resolution=RESOLUTION))
    theirs, _ = Files(folder / "files")[0]
    assert (ours.transpose(2, 0, 1) == theirs).all()


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    value = work()
    return time.process_time() - began, value


def scale_row(images: int, per_tar: int, folder: Path) -> dict[str, Any]:
    """Tars of `images` samples with an image of 1 KB, a label and a table of 300 bytes each; their
    index in a process of its own: seconds, memory at its peak, and bytes; and how long a stream
    takes to open and give its first batch, and what memory."""
    picture, table = photographs((16, 16), 1)[0], {"caption": "x" * 280}
    left, number = images, 0
    while left:
        count = min(per_tar, left)
        with webdataset.TarWriter(str(folder / f"set-{number:06d}.tar")) as writer:
            for key in range(count):
                name = f"{number:06d}{key:06d}"
                writer.write({"__key__": name, "jpg": picture, "cls": key % 1000, "json": table})
        left, number = left - count, number + 1
    command = [sys.executable, "-m", "fasttrain_data", "index", str(folder), "--workers", "1"]
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.02)
    assert process.returncode == 0
    seconds = time.perf_counter() - began
    index = folder / "fasttrain-index"
    began = time.perf_counter()
    stream = _opened(folder)
    next(stream)
    return {
        "images": images,
        "tars": number,
        "tar_bytes": sum(path.stat().st_size for path in folder.glob("*.tar")),
        "seconds": seconds,
        "memory": peak,
        "index_bytes": (index / "index.json").stat().st_size,
        "records_bytes": (index / "records.bin").stat().st_size,
        "first_batch_seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", action="store_true", help="the index of many images instead")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.scale:
        rows = []
        for images in arguments.images:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(scale_row(images, 1000, Path(folder)))
        result = json.loads(SCALE.read_text()) | {"foreign": {"machine": machine(), "rows": rows}}
        SCALE.write_text(json.dumps(result, indent=1) + "\n")
        print(foreign_scale_part(result))
        return
    found = {
        "machine": machine(),
        "note": SHARED,
        "batch": BATCH,
        "repeats": REPEATS,
        "resolution": RESOLUTION,
        "versions": {each.__name__: str(each.__version__) for each in (np, PIL, webdataset)},
        "sets": [measured(*each) for each in SETS],
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(data_foreign_part(found))


if __name__ == "__main__":
    main()
