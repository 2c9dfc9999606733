"""Streams over WebDataset's tars, and which image and label each of their images is."""

from __future__ import annotations

from itertools import islice
from typing import Any

from fasttrain.data import ImageStream, open_storage
from fasttrain.data.foreign import View

IMAGES = 26
GREY = View(resolution=8, channels=1)


def stream_of(spec: object, view: View = GREY, **options: Any) -> ImageStream:
    storage = open_storage(str(spec), options.pop("remote", None), view, options.pop("index", None))
    return ImageStream(storage, **{"batch": 4, "seed": 3, "window": 5, **options})


def seen(stream: ImageStream, batches: int) -> list[tuple[int, int]]:
    """Which image and label each is; images have one value, whatever their size was."""
    found = []
    for batch in islice(stream, batches):
        labels = batch.class_labels
        assert labels is not None
        values = batch.images.flatten(1)
        assert (values == values[:, :1]).all()
        found += zip(values[:, 0].tolist(), labels.argmax(1).tolist(), strict=True)
    stream.close()
    return found
