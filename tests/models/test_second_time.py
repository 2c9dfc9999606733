"""A second time of a network: nothing at the start, and in the end a part of a bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fasttrain.models.adapters import merged
from fasttrain.models.build import new_network
from fasttrain.models.freezing import select_trained
from fasttrain.models.networks import Precond
from fasttrain.models.second_time import SecondTime, add_second_time, folded
from fasttrain.settings import MeanFlowSettings, NetworkSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from tests.models.networks.test_families import BASE, NETWORKS
from tests.small_models import ADM, NCSNPP, PLAIN, small_network

ALL: dict[str, dict[str, Any]] = {"DDPM++": PLAIN, "NCSN++": NCSNPP, "ADM": ADM}
ALL |= {"DiT": BASE | NETWORKS["DiT"]}


def images(network: Precond) -> torch.Tensor:
    shape = (2, network.img_channels, 8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    labels = torch.eye(network.label_dim)[:2] if network.label_dim else None
    found: torch.Tensor = network(x, torch.tensor([80.0, 3.0]), labels)
    return found


@pytest.mark.parametrize("name", ALL)
def test_it_begins_as_nothing_and_ends_as_a_bias(name: str) -> None:
    network = small_network(NetworkSettings(**ALL[name]))
    start, names = images(network), set(network.state_dict())
    second = add_second_time(network.model, 0.9, seed=0)
    assert torch.equal(images(network), start)
    with second.told(torch.tensor([0.9, 0.1])):
        assert torch.equal(images(network), start)
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with second.told(torch.tensor([0.9, 0.1])):
        told = images(network)
    whole = images(network)
    torch.testing.assert_close(whole[0], told[0])
    assert (whole[1] - told[1]).abs().max() > 1e-3
    assert (whole - start).abs().max() > 1e-3

    weights = merged(network.state_dict())
    assert set(weights) == names
    plain = small_network(NetworkSettings(**ALL[name]), seed=1)
    plain.load_state_dict(weights)
    torch.testing.assert_close(images(plain), whole, rtol=1e-5, atol=1e-5)


def test_it_trains_beside_adapters_and_whatever_is_frozen() -> None:
    for more in ([], ["adapt={kind: lora, layers: [embedding]}"], ["freeze=3"]):
        settings = load_settings("digits-meanflow", more, MeanFlowSettings)
        network = new_network("one_step", settings.network)
        select_trained(network, settings)
        names = {n: p.requires_grad for n, p in network.named_parameters() if ".second." in n}
        assert len(names) == 4
        assert all(names.values())
        second = network.model.map_layer1.second
        assert isinstance(second, SecondTime)
        assert second.whole.item() == pytest.approx(80 / 81)
        if more[:1] == ["adapt={kind: lora, layers: [embedding]}"]:
            torch.nn.init.normal_(network.model.map_layer1.adapter.up)
            torch.nn.init.normal_(second.outer)
            whole, plain = images(network.eval()), new_network("one_step", settings.network)
            plain.load_state_dict(merged(network.state_dict()))
            torch.testing.assert_close(images(plain.eval()), whole, rtol=1e-4, atol=1e-4)


def test_a_network_without_a_place_for_it_is_refused() -> None:
    network = new_network("one_step", NetworkSettings(**BASE | NETWORKS["EDM2"]))
    with pytest.raises(UserError, match="a EDM2UNet does not say where it takes a second time"):
        add_second_time(network.model, 0.9, seed=0)


def test_damaged_tensors_end_in_a_line() -> None:
    network = small_network(NetworkSettings(**PLAIN))
    add_second_time(network.model, 0.9, seed=0)
    weights = network.state_dict()
    part = "model.map_layer1.second.outer"
    with pytest.raises(UserError, match=r"map_layer1\.bias: its second time is not complete"):
        folded({name: value for name, value in weights.items() if name != part})
    with pytest.raises(UserError, match=r"map_layer1\.bias: its second time does not fit it"):
        folded(weights | {part: torch.zeros(3, 3)})
