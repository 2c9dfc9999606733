"""Shard sets whose pixels tell which image it is: all pixels of image i have the value i."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fasttrain_data import convert
from fasttrain_data.records import encode_image as encode_png


def write_set(folder: Path, *, counts: Sequence[int], per_shard: int, channels: int = 1) -> Path:
    """Classes with `counts` images, in shards of at most `per_shard`; 4x4, values 0, 1, 2..."""
    value = 0
    for label, count in enumerate(counts):
        (folder / "in" / f"class{label}").mkdir(parents=True)
        for _ in range(count):
            pixels = np.full((4, 4, channels), value, np.uint8)
            (folder / f"in/class{label}/{value:03d}.png").write_bytes(encode_png(pixels))
            value += 1
    convert(folder / "in", folder / "set", images_per_shard=per_shard)
    return folder / "set"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """53 images of three classes in nine shards of five or six images."""
    return write_set(tmp_path_factory.mktemp("shards"), counts=(20, 30, 3), per_shard=6)


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    def make(**options: object) -> Path:
        return write_set(tmp_path, **options)  # type: ignore[arg-type]

    return make
