"""Mean EfficientNet-Lite0 features of each class of a data set: where the discriminator's class
embeddings start.

    store_class_features(Path("data/imagenet64"), 224, device)     # fasttrain class-features
    means = class_features(settings, device)                       # [label_dim, 320]

What is stored lies beside the shards, as `class_features-224.safetensors`, with the content hash of
the data that it is of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fasttrain.checkpoint import write_atomic
from fasttrain.data import RealImages, storage_of
from fasttrain.data.storage import is_url
from fasttrain.discriminator.features import build_features, class_mean_features
from fasttrain.errors import UserError, is_machine_fault
from fasttrain.settings import FinetuneSettings
from fasttrain_data import load_index

__all__ = ["class_features", "store_class_features"]

A_CLASS = 200
"""Images a class, on average, that are looked at when nothing is stored."""
BATCH = 64


def store_class_features(data: Path, resolution: int, device: torch.device) -> Path:
    """Look at every image of a data set once, and write the file. Returns its path.

    Raises UserError for a resolution that is no multiple of 32, DataError for damaged data.
    """
    index = load_index(data)
    features = build_features("lite0", resolution).to(device)
    classes = len(index.classes)
    images = _images(RealImages(data), index.images, device)
    parts = track(images, "class features", total=-(-index.images // BATCH))
    means = class_mean_features(features, parts, classes)
    path = stored_at(data, resolution)
    write_atomic(path, save({"means": means.cpu()}, {"content_sha256": index.content_sha256}))
    return path


def class_features(settings: FinetuneSettings, device: torch.device) -> Tensor:
    """[label_dim, 320]: what is stored for the resolution of the recipe's Lite0 (or of its first
    backbone), else the means over the head of the first epoch.

    Every process reads the same images, so all start from the same embedding. Raises UserError for
    a stored file that is of other data.
    """
    backbones, data = settings.discriminator.backbones, settings.data.path
    storage = storage_of(settings.data)
    lite0 = [backbone for backbone in backbones if backbone.name == "lite0"]
    resolution = (lite0 or list(backbones))[0].resolution
    index, label_dim = storage.index(), settings.network.label_dim
    path = stored_at(Path(data), resolution)
    if not is_url(data) and path.is_file():
        return _stored(path, index.content_sha256, label_dim)
    features = build_features("lite0", resolution).to(device)
    count = min(index.images, A_CLASS * label_dim)
    parts = _images(RealImages.of(settings.data, seed=settings.seed), count, device)
    return class_mean_features(features, parts, label_dim)


def stored_at(data: Path, resolution: int) -> Path:
    return data / f"class_features-{resolution}.safetensors"


def _stored(path: Path, content_sha256: str, label_dim: int) -> Tensor:
    again = "make it again: fasttrain class-features"
    try:
        with path.open("rb"), safe_open(path, "pt") as file:
            of = (file.metadata() or {}).get("content_sha256")
            means = file.get_tensor("means")
    except (SafetensorError, OSError) as error:
        if is_machine_fault(error):
            raise
        raise UserError(f"{path} cannot be read ({error}): {again}") from None
    if of != content_sha256 or means.shape[0] != label_dim:
        raise UserError(f"{path} is not of the data beside it: {again}")
    return means


def _images(
    images: RealImages, count: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The first `count` images of an epoch with their one-hot classes."""
    for first in range(0, count, BATCH):
        part = images.take(min(BATCH, count - first)).to(device)
        yield part.images, part.class_labels
