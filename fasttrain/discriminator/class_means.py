"""Mean EfficientNet-Lite0 features of each class of a data set: the initial values of the
discriminator's class embeddings.

    store_class_features(Path("data/imagenet64"), 224, device)     # fasttrain class-features
    means = class_features(settings, device)                       # [label_dim, 320]

The file lies beside the shards, as `class_features-224.safetensors`, with the content hash of its
data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fasttrain.data import RealImages, storage_of
from fasttrain.models.features.network import FeatureNetwork, build_features
from fasttrain.settings import AdversarialSettings
from fasttrain.system.errors import UserError, is_machine_fault
from fasttrain.system.files import probe, write_atomic
from fasttrain_data import load_index
from fasttrain_data.fetching import is_url

__all__ = ["class_features", "class_mean_features", "store_class_features"]


A_CLASS = 200
"""Average images of each class that are averaged without a stored file."""


BATCH = 64


def store_class_features(
    data: Path, resolution: int, device: torch.device, out: Path | None = None
) -> Path:
    """Compute the features of every image of a data set, and write the file, beside the data or to
    `out`. Returns its path.

    Raises UserError for a set of one class and for a resolution that is not a multiple of 32,
    DataError for damaged data.
    """
    index, path = load_index(data), out or stored_at(data, resolution)
    if len(index.classes) == 1:
        raise UserError(f"{data} has one class: a discriminator has no class embeddings for it")
    probe(path)
    features = build_features("lite0", resolution).to(device)
    classes = len(index.classes)
    images = _images(RealImages(data), index.images, device)
    parts = track(images, "class features", total=-(-index.images // BATCH))
    means = class_mean_features(features, parts, classes)
    write_atomic(path, save({"means": means.cpu()}, {"content_sha256": index.content_sha256}))
    return path


def class_features(settings: AdversarialSettings, device: torch.device) -> Tensor:
    """[label_dim, 320]: the stored means for the resolution of the recipe's Lite0 (or of its first
    backbone), else the means over the head of the first epoch.

    Every process reads the same images, so all start from the same embedding. Raises UserError for
    a stored file that is of other data.
    """
    pictures = settings.pictures
    backbones, data = settings.discriminator.backbones, pictures.path
    storage = storage_of(pictures, settings.network)
    lite0 = [backbone for backbone in backbones if backbone.name == "lite0"]
    resolution = (lite0 or list(backbones))[0].resolution
    index, label_dim = storage.index(), settings.network.label_dim
    path = stored_at(Path(data), resolution)
    if isinstance(named := settings.discriminator.class_embedding, Path):
        return _stored(named, index.content_sha256, label_dim)
    if not pictures.mix and not is_url(data) and path.is_file():
        return _stored(path, index.content_sha256, label_dim)
    features = build_features("lite0", resolution).to(device)
    count = min(index.images, A_CLASS * label_dim)
    parts = _images(RealImages.of_run(settings, seed=settings.seed), count, device)
    return class_mean_features(features, parts, label_dim)


def check_class_features(settings: AdversarialSettings) -> None:
    """Raises UserError for a file of class means that the settings name, and that is not one or is
    of other data."""
    wanted = settings.discriminator
    named, label_dim = wanted.class_embedding, settings.network.label_dim
    if isinstance(named, Path) and label_dim and wanted.conditional:
        index = storage_of(settings.pictures, settings.network).index()
        _stored(named, index.content_sha256, label_dim)


def stored_at(data: Path, resolution: int) -> Path:
    return data / f"class_features-{resolution}.safetensors"


def _stored(path: Path, content_sha256: str, label_dim: int) -> Tensor:
    again = "write it again: fasttrain class-features"
    try:
        with path.open("rb"), safe_open(path, "pt") as file:
            of = (file.metadata() or {}).get("content_sha256")
            means = file.get_tensor("means")
    except (SafetensorError, OSError) as error:
        if is_machine_fault(error):
            raise
        raise UserError(f"{path} cannot be read ({error}): {again}") from None
    if of != content_sha256 or means.shape[0] != label_dim:
        raise UserError(f"{path} does not belong to these data: {again}")
    return means


def _images(
    images: RealImages, count: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The first `count` images of an epoch with their one-hot classes."""
    for first in range(0, count, BATCH):
        part = images.take(min(BATCH, count - first)).to(device)
        yield part.images, part.class_labels


@torch.no_grad()
def class_mean_features(
    network: FeatureNetwork, batches: Iterable[tuple[Tensor, Tensor | None]], label_dim: int
) -> Tensor:
    """Mean features of each class, the initial values of the heads' class embeddings.

    batches: (images [n, 1 or 3, H, W] in [-1, 1], one-hot class_labels [n, label_dim]), read once.
    Returns [label_dim, channels of the last map] float32: the last map's mean over pixels and over
    the class's images; over all images for a class without images. Raises UserError without any.
    """
    sums: Tensor | None = None
    counts: Tensor | None = None
    for images, class_labels in batches:
        if class_labels is None or class_labels.shape != (len(images), label_dim):
            shape = "none" if class_labels is None else tuple(class_labels.shape)
            raise UserError(
                f"class labels of shape {shape} for {len(images)} images: "
                f"they must be one-hot rows of {label_dim} classes"
            )
        pooled = network(images)[-1].mean(dim=(2, 3)).double()
        labels = class_labels.double()
        sums = labels.T @ pooled if sums is None else sums + labels.T @ pooled
        counts = labels.sum(0) if counts is None else counts + labels.sum(0)
    if sums is None or counts is None or counts.sum() == 0:
        raise UserError("no labelled images for class means: check the data set")
    means = sums / counts.clamp(min=1)[:, None]
    overall = sums.sum(0) / counts.sum()
    return torch.where((counts > 0)[:, None], means, overall).float()
