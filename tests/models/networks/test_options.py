"""Arguments of a network's constructor that no setting is named for."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fasttrain.models.build import new_network
from fasttrain.models.networks.song_unet import SongUNet
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings, to_yaml
from fasttrain.settings.registry import NETWORKS
from fasttrain.system.errors import UserError


class Scaled(SongUNet):
    """A U-Net whose output is multiplied by an option."""

    def __init__(self, *, gain: float = 1.0, **others: Any) -> None:
        super().__init__(**others)
        self.gain = gain


own = inspect.signature(SongUNet).parameters.values()
gain = inspect.Parameter("gain", inspect.Parameter.KEYWORD_ONLY, default=1.0)
Scaled.__signature__ = inspect.Signature([*own, gain])  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("scaled_network")
    module.Scaled = Scaled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scaled_network", module)
    monkeypatch.setitem(NETWORKS, "SongUNet", "scaled_network:Scaled")


def settings_with(option: str) -> PretrainSettings:
    return load_settings("digits-edm", [option], PretrainSettings)


def test_an_option_reaches_the_constructor_and_the_run_keeps_it(tmp_path: Path) -> None:
    settings = settings_with("network.options={gain: 2.5}")
    assert new_network("edm", settings.network).model.gain == 2.5
    recipe = tmp_path / "again.yaml"
    recipe.write_text(to_yaml(settings))
    assert load_settings(str(recipe), [], PretrainSettings).network == settings.network


def test_an_option_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match=r"options\.gian: a SongUNet has no such option"):
        new_network("edm", settings_with("network.options={gian: 2.5}").network)
