"""The stream that a run's settings name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from fasttrain.data.open import open_stream
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import ONE_PROCESS
from tests.data.test_image_stream import values


def test_shards_come_once_an_epoch_or_are_drawn_again(make_set: Callable[..., Path]) -> None:
    path = make_set(counts=[32], per_shard=2)
    given = [f"data.path={path}", "batch=4", "network.img_resolution=4", "network.label_dim=0"]
    orders = []
    for changes in [], ["data.order=resampled"]:
        settings = load_settings("digits-edm", [*given, *changes], PretrainSettings)
        batches = islice(open_stream(settings, ONE_PROCESS), 8)
        orders.append(sorted(value for batch in batches for value in values(batch)))
    assert orders[0] == list(range(32))
    assert len(orders[1]) == 32
    assert len(set(orders[1])) < 32
