"""The stream of batches from shards, with its cursor."""

from fasttrain.data.batch import Batch
from fasttrain.data.from_settings import open_stream, storage_of
from fasttrain.data.image_stream import ImageStream
from fasttrain.data.real_images import RealImages
from fasttrain.data.storage import Remote, Storage, open_storage

__all__ = [
    "Batch",
    "ImageStream",
    "RealImages",
    "Remote",
    "Storage",
    "open_storage",
    "open_stream",
    "storage_of",
]
