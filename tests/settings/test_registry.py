"""Every choice that the settings name is where its place says."""

from __future__ import annotations

import pytest

from fasttrain.models.networks.network import Network
from fasttrain.settings.registry import NETWORKS, load


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    assert issubclass(load(NETWORKS[name]), Network)
