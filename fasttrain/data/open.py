"""The data that a run's settings name.

storage = storage_of(settings.data)
stream = open_stream(settings, world)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fasttrain.data.locate import storage_of
from fasttrain.data.stream import ImageStream

if TYPE_CHECKING:
    from fasttrain.settings import RunSettings
    from fasttrain.system.processes import World

__all__ = ["open_stream"]


def open_stream(settings: RunSettings, world: World) -> ImageStream:
    """The stream of batches that the settings name, checked against the network's input."""
    network, data = settings.network, settings.data
    on_gpu = world.device.type == "cuda"
    return ImageStream(
        storage_of(data, network),
        batch=settings.batch,
        streams=data.streams,
        seed=settings.seed,
        rank=world.rank,
        world_size=world.size,
        resolution=network.img_resolution,
        channels=network.img_channels,
        label_dim=network.label_dim,
        window=data.window,
        resampled=data.order == "resampled",
        max_skipped=data.max_skipped,
        workers=_workers(on_gpu) if data.workers is None else data.workers,
        reader_timeout=data.reader_timeout,
        pin=on_gpu,
    )


def _workers(on_gpu: bool) -> int:
    """Default number of reader processes. On a GPU up to two, which decode more images than any GPU
    trains on, as far as there are cores beside the training processes. On a CPU none, because they
    would take the training's cores."""
    if not on_gpu:
        return 0
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # of torchrun; of deepspeed
    local = int(next((os.environ[name] for name in names if name in os.environ), 1))
    return max(1, min(2, len(os.sched_getaffinity(0)) // local - 1))
