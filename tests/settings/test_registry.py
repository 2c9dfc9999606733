"""Every choice that the settings name is where its place says."""

from __future__ import annotations

import pytest
import torch

from fasttrain.evaluation.extractors import Extractor
from fasttrain.models.features.backbone import Backbone
from fasttrain.models.networks.network import Network
from fasttrain.settings.registry import BACKBONES, EXTRACTORS, LOSSES, NETWORKS, load


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    assert issubclass(load(NETWORKS[name]), Network)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name: str) -> None:
    found = load(BACKBONES[name])
    assert isinstance(found, Backbone)
    assert found.published.name == name


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors_are_what_the_settings_take_them_for(name: str) -> None:
    entry = EXTRACTORS[name]
    found = load(entry.place)
    assert issubclass(found, Extractor)
    assert entry.classifies == (found.classes > 0)
    assert entry.downloaded == (found.published is not None)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    loss = load(LOSSES[name])
    logits = [torch.tensor([[0.5, -2.0]]), torch.tensor([[1.0]])]
    judged = loss.discriminator(logits, logits)
    assert judged.real == judged.fake == pytest.approx((-0.75 + 1.0) / 2)
    assert judged.loss > 0
    assert loss.generator(logits, lambda: logits).isfinite()
