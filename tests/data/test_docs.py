"""The Python of docs/data.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from fasttrain.data import ImageStream
from fasttrain_data import convert

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    convert("digits", tmp_path / "digits")
    text = PAGE.read_text().partition("## Your own stage")[2]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    assert len(blocks) == 2
    stage, reader = (
        re.sub("^    ", "", block, flags=re.MULTILINE).replace(
            "data/digits", str(tmp_path / "digits")
        )
        for block in blocks
    )
    names: dict[str, Any] = {}
    exec(stage, names)
    plain = next(ImageStream(tmp_path / "digits", batch=64, streams=4, seed=0)).to("cpu")
    assert names["batch"].images.shape == (64, 1, 8, 8)
    mirrored = (names["batch"].images == plain.images.flip(3)).flatten(1).all(1)
    same = (names["batch"].images == plain.images).flatten(1).all(1)
    assert mirrored.sum() >= 32
    assert (mirrored | same).all()
    assert names["state"]["batches"] == 1

    exec(reader, names)
    assert names["pixels"].shape == (8, 8, 1)
    assert names["pixels"].dtype == np.uint8
