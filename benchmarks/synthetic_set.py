"""A set of any number of images, each told from all others by its pixels, for measuring scale.

    python -m benchmarks.synthetic_set convert FOLDER 5000000     # both print seconds
    python -m benchmarks.synthetic_set verify FOLDER

Images are 8x8 grey, stored raw; a row of image i holds the eight bytes of i times an odd number.
It imports no torch, so that the memory of a conversion can be seen.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fasttrain_data import Options, run_conversion, run_verification
from fasttrain_data.sources.base import ArraySource

__all__ = ["SyntheticSource", "convert", "numbers_of", "verify"]

ODD, ODD_INVERSE = 0x9E3779B97F4A7C15, 0xF1DE83E19937733D
"""The product of the two is 1 modulo 2**64."""


class SyntheticSource(ArraySource):
    """Image i has the class i modulo 1000."""

    shape = (8, 8, 1)

    def __init__(self, images: int) -> None:
        self.classes = [f"class {number:03d}" for number in range(1000)]
        self.labels = np.arange(images) % 1000
        self.identity = {"kind": "synthetic", "images": images}

    def member(self, item: int) -> str:
        return f"image {item}"

    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        row = (item * ODD % 2**64).to_bytes(8, "little")
        return np.frombuffer(row * 8, np.uint8).reshape(8, 8, 1)


def numbers_of(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Which images these are, uint8 [n, 1, 8, 8]."""
    rows = np.ascontiguousarray(images[:, 0, -1]).view("<u8")[:, 0]
    return rows * np.uint64(ODD_INVERSE)


def convert(out: Path, images: int, *, per_shard: int = 1000, workers: int | None = None) -> float:
    """Make the set; seconds."""
    began = time.monotonic()
    options = Options(record="raw", images_per_shard=per_shard)
    run_conversion(SyntheticSource(images), out, options, workers=workers)
    return time.monotonic() - began


def verify(path: Path, *, workers: int | None = None) -> float:
    """Verify it; seconds."""
    began = time.monotonic()
    found = run_verification(path, workers=workers)
    assert (found.copies, found.contradictions) == (0, 0)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("step", choices=("convert", "verify"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=int, nargs="?", default=5_000_000)
    arguments = parser.parse_args()
    if arguments.step == "convert":
        print(convert(arguments.folder, arguments.images))
    else:
        print(verify(arguments.folder))


if __name__ == "__main__":
    main()
