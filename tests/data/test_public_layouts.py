"""Public data sets as their publishers pack them, converted, checked, and read for one epoch by the
stream that training reads: every image comes with its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fasttrain.data import ImageStream
from fasttrain_data import convert, verify
from tests.data_tools.layouts import LAYOUTS, Layout


def epoch(folder: Path, names: list[str], images: int) -> list[tuple[str, int]]:
    """Class and value of every image of an epoch."""
    stream = ImageStream(folder, batch=1, seed=3)
    found = []
    for _ in range(images):
        batch = next(stream).to("cpu")
        labels = batch.class_labels
        label = 0 if labels is None or not labels.numel() else int(labels[0].argmax())
        pixels = batch.images[0].numpy()
        assert np.ptp(pixels) < 0.02
        found.append((names[label], round((float(pixels[0, 0, 0]) + 1) * 127.5)))
    stream.close()
    return sorted(found)


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.name for layout in LAYOUTS])
def test_every_image_reaches_training_with_its_class(layout: Layout, tmp_path: Path) -> None:
    source, options = layout.make(tmp_path), dict(layout.options)
    if "labels" in options:
        options["labels"] = str((source if source.is_dir() else source.parent) / options["labels"])
    index = convert(source, tmp_path / "set", images_per_shard=2, **options)
    assert verify(tmp_path / "set") == index
    names = [info.name for info in index.classes]
    counts = {info.name: info.images for info in index.classes if info.images}
    expected = layout.expected
    assert counts == {k: sum(name == k for name, _ in expected) for k in dict(expected)}
    assert epoch(tmp_path / "set", names, index.images) == expected
    assert str(tmp_path) not in (tmp_path / "set/index.json").read_text()
    # The same command again finds the set that it made.
    assert convert(source, tmp_path / "set", images_per_shard=2, **options) == index
