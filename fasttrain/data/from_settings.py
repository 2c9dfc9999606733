"""The data that a run's settings name.

storage = storage_of(settings.data)
stream = open_stream(settings, world)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fasttrain.data.image_stream import ImageStream
from fasttrain.data.storage import Remote, Storage, is_url, open_storage
from fasttrain.errors import UserError
from fasttrain_data import DataError

if TYPE_CHECKING:
    from fasttrain.distributed import World
    from fasttrain.settings import DataSettings, RunSettings

__all__ = ["open_stream", "storage_of"]


def storage_of(data: DataSettings, *, trust_urls: bool = True) -> Storage:
    """Where the shard set lies.

    trust_urls: whether the user has named it. What a run directory names may be anyone's, and is
        opened as a URL only when the user says so.

    Raises UserError for a URL that is not trusted, or of a protocol that cannot be opened.
    """
    if is_url(data.path) and not trust_urls:
        raise UserError(
            f"the run's data are at {data.path!a:.200}, and what a run names is not opened over "
            f"the network: add --trust-urls if you trust whoever made the run"
        )
    given = {} if data.cache is None else {"cache": data.cache}
    remote = Remote(
        cache_bytes=int(data.cache_gigabytes * 1e9),
        timeout=data.timeout,
        attempts=data.attempts,
        options=data.storage,
        any_protocol=data.any_protocol,
        **given,
    )
    try:
        return open_storage(data.path, remote)
    except DataError as error:
        raise UserError(str(error)) from error


def open_stream(settings: RunSettings, world: World) -> ImageStream:
    """The stream of batches that the settings name, checked against the network's input."""
    network, data = settings.network, settings.data
    on_gpu = world.device.type == "cuda"
    return ImageStream(
        storage_of(data),
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
    """A GPU is not to wait: up to two readers, which decode more than any GPU trains on, as cores
    allow beside the training processes. On a CPU they would take the cores that train."""
    if not on_gpu:
        return 0
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # of torchrun; of deepspeed
    local = int(next((os.environ[name] for name in names if name in os.environ), 1))
    return max(1, min(2, len(os.sched_getaffinity(0)) // local - 1))
