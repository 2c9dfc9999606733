"""The stream of batches from shards, with its cursor."""

from fasttrain.data.batch import Batch
from fasttrain.data.locate import open_storage, storage_of
from fasttrain.data.open import open_stream
from fasttrain.data.real_images import RealImages
from fasttrain.data.remote import Remote
from fasttrain.data.storage import Storage
from fasttrain.data.stream import ImageStream

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
