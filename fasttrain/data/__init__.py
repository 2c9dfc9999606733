"""The stream of batches from shards, with its cursor."""

from fasttrain.data.batch import Batch
from fasttrain.data.image_stream import ImageStream

__all__ = ["Batch", "ImageStream"]
