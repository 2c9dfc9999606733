"""The stream that a run's settings name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from fasttrain.data import RealImages
from fasttrain.data.locate import storage_of
from fasttrain.data.open import open_stream
from fasttrain.settings import DataSettings, NetworkSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import ONE_PROCESS
from fasttrain_data import convert
from fasttrain_data.indexing import run_indexing
from tests.data.batches import values
from tests.foreign import write_shards


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


@pytest.mark.parametrize("crop", ["center", "adm"])
def test_images_of_any_size_become_what_the_settings_say(tmp_path: Path, crop: str) -> None:
    tars = write_shards(tmp_path / "tars", images=9, per_shard=5, ending="jpg", channels=3)
    run_indexing(str(tars), workers=1)
    convert(tars, tmp_path / "out", resolution=7, crop=crop)
    settings = DataSettings(path=str(tars), resolution=7, crop=crop)
    network = NetworkSettings(img_resolution=8)  # decides where the data's settings do not
    sets = [RealImages(storage_of(settings, network)), RealImages(tmp_path / "out")]
    made, converted = (sorted(map(bytes, images.take(9).images.numpy())) for images in sets)
    assert made == converted
