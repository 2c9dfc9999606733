"""Real images one after the other: the order of one stream, however many are taken at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fasttrain.data import ImageStream, RealImages
from fasttrain.evaluation.reference import Head
from fasttrain.settings import DataSettings, NetworkSettings
from fasttrain.system.errors import UserError


def test_they_come_in_the_order_of_one_stream_once_an_epoch(shards: Path) -> None:
    whole = next(ImageStream(shards, batch=53, streams=1, seed=0))
    images = RealImages(shards)
    assert images.index.images == 53
    taken = [images.take(count) for count in (1, 20, 32)]
    assert torch.equal(torch.cat([batch.images for batch in taken]), whole.images)
    assert torch.equal(torch.cat([batch.class_labels for batch in taken]), whole.class_labels)
    assert torch.equal(torch.cat([batch.index for batch in taken]), torch.arange(53))
    assert sorted(whole.images[:, 0, 0, 0].tolist()) == list(range(53))
    assert not torch.equal(RealImages(shards, seed=1).take(53).images, whole.images)
    head = Head(RealImages(shards), 8)
    for first in (0, 8):  # the next ones, each time
        parts = list(head.batches([range(3), range(3, 8)]))
        assert [part for part, _ in parts] == [range(3), range(3, 8)]
        values = torch.cat([batch for _, batch in parts])
        assert torch.equal(values, whole.images[first : first + 8].float().div(127.5).sub(1))


def test_they_must_be_those_of_the_network(shards: Path) -> None:
    network = NetworkSettings(img_resolution=4, img_channels=1, label_dim=0)
    assert RealImages(shards, network=network).take(2).class_labels is None
    with pytest.raises(UserError, match="4x4"):
        RealImages(shards, network=network.model_copy(update={"img_resolution": 8}))


def test_those_of_a_run_are_read_as_its_settings_say(shards: Path) -> None:
    data = DataSettings(path=str(shards), max_skipped=3, reader_timeout=5)
    images = RealImages.of(data, seed=1)
    assert (images.stream.max_skipped, images.stream.reader_timeout) == (3, 5)
    assert torch.equal(images.take(5).images, RealImages(shards, seed=1).take(5).images)
    remote = data.model_copy(update={"path": "https://host/set"})
    with pytest.raises(UserError, match="add --trust-urls"):
        RealImages.of(remote, trust_urls=False)
