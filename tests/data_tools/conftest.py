"""Small image folders and shard sets; pixel values tell which image it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasttrain_data import convert
from tests.data_tools.sources import Images


def write_image(path: Path, value: int, *, mode: str = "L", size: tuple[int, int] = (6, 6)) -> Path:
    """An image of one value (its bands differ), in a format by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = {"L": 1, "RGB": 3, "RGBA": 4, "LA": 2}[mode]
    color = tuple((value + 40 * band) % 256 for band in range(bands))
    Image.new(mode, size, color if bands > 1 else color[0]).save(path)
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Call with counts by class: photos/<class>/NN.png, values 0, 1, 2... over all classes."""

    def make(**counts: int) -> Path:
        root = tmp_path / "photos"
        value = 0
        for name, count in counts.items():
            for number in range(count):
                write_image(root / name / f"{number:02d}.png", value)
                value += 1
        return root

    return make


@pytest.fixture
def shard_set(image_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """12 images of two classes in three shards."""
    convert(image_folder(cats=7, dogs=5), tmp_path / "set", images_per_shard=4)
    return tmp_path / "set"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def images(rng: np.random.Generator) -> Images:
    """Seven colour images of 6x6 in two classes."""
    return {
        name: [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(count)]
        for name, count in (("0", 4), ("1", 3))
    }
