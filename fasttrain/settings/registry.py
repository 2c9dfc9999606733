"""Choices that settings name, and the place of each: the six seams of docs/extending.md.

A new network, backbone, extractor, loss or reward is one new file and one line here (a data source:
one line in `fasttrain_data.sources`). The schema takes the names from these tables, and the rooms
that use a choice load it at its first use:

    load(NETWORKS["SongUNet"])              # the class of fasttrain.models.networks.song_unet

A place is text, `module:name`, because the settings import nothing of the rooms above them and no
mathematics; `tests/settings/test_registry.py` loads every one.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = [
    "BACKBONES",
    "EXTRACTORS",
    "LABELLED_BACKBONES",
    "LOSSES",
    "NETWORKS",
    "NETWORK_OF",
    "REWARDS",
    "SHELF",
    "ExtractorEntry",
    "load",
]

NETWORKS = {
    "SongUNet": "fasttrain.models.networks.song_unet:SongUNet",
    "DhariwalUNet": "fasttrain.models.networks.dhariwal_unet:DhariwalUNet",
    "EDM2UNet": "fasttrain.models.networks.edm2_unet:EDM2UNet",
    "DiT": "fasttrain.models.networks.transformer:DiT",
    "DiffusersUNet": "fasttrain.models.networks.diffusers_networks:DiffusersUNet",
    "DiffusersTransformer": "fasttrain.models.networks.diffusers_networks:DiffusersTransformer",
}
"""`network.model_type` -> a `fasttrain.models.networks.network.Network`."""

BACKBONES = {
    "lite0": "fasttrain.models.features.efficientnet_lite:LITE0",
    "vgg16_bn": "fasttrain.models.features.vgg:BACKBONE",
    "deit_base_distilled": "fasttrain.models.features.deit:BACKBONE",
    "dino_vits16": "fasttrain.models.features.dino:DINO_VITS16",
    "dinov2_vits14": "fasttrain.models.features.dino:DINOV2_VITS14",
}
"""`discriminator.backbones`, name -> a `fasttrain.models.features.backbone.Backbone`."""

LABELLED_BACKBONES = {"lite0", "vgg16_bn", "deit_base_distilled"}
"""Those that were trained on ImageNet's labels."""


@dataclass(frozen=True)
class ExtractorEntry:
    """An extractor, and what settings must know of it.

    Attributes:
        place: of a `fasttrain.evaluation.extractors.Extractor`.
        classifies: whether it has the classes of an inception score.
        downloaded: whether its weights are a file that users download.
        labelled: whether it was trained on ImageNet's labels.
    """

    place: str
    classifies: bool = False
    downloaded: bool = False
    labelled: bool = False


EXTRACTORS = {
    "lite2": ExtractorEntry("fasttrain.evaluation.lite2:Lite2", labelled=True),
    "lite0": ExtractorEntry("fasttrain.evaluation.lite0:Lite0", labelled=True),
    "inception": ExtractorEntry(
        "fasttrain.evaluation.inception:Inception", classifies=True, downloaded=True, labelled=True
    ),
    "dino_vits16": ExtractorEntry("fasttrain.evaluation.dino:Dino", downloaded=True),
}
"""`evaluate.extractor` and `fasttrain evaluate --extractor`."""

LOSSES = {
    "non_saturating": "fasttrain.training.objectives.gan:NON_SATURATING",
    "hinge": "fasttrain.training.objectives.gan:HINGE",
    "ratio": "fasttrain.training.objectives.gan:RATIO",
    "relativistic": "fasttrain.training.objectives.gan:RELATIVISTIC",
}
"""`loss` -> a `fasttrain.training.objectives.gan.GanLoss`."""

REWARDS = {
    "own_class": "fasttrain.training.objectives.reward:OwnClass",
}
"""`reward.name` -> a `fasttrain.training.objectives.reward.Reward`."""

NETWORK_OF = "fasttrain.models.load:network_of_model"
"""The network of the model at a path, for a recipe that leaves its own out."""

SHELF = {
    "fashion-mnist": "one-step generator of Fashion-MNIST, 28x28, 10 classes",
    "fashion-mnist-edm": "the diffusion model that it was made from",
    "emoji": "one-step generator of emoji, 32x32 in colour, 10 classes",
    "emoji-edm": "the diffusion model that it was made from",
}
"""Models that come with the package, by name, in a few words; see
`fasttrain.models.files.shelf`."""


def load(place: str) -> Any:
    """The object at a place, `module:name`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
