"""What settings of the network build that no recipe has, but a model file may."""

from __future__ import annotations

import pytest
import torch

from fasttrain.models.build import new_network
from fasttrain.settings import FinetuneSettings, NetworkSettings, ScoreSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError

SMALL = {
    "img_resolution": 8,
    "img_channels": 1,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (),
    "label_dim": 3,
}


@pytest.mark.parametrize("factor", [2, 4])
def test_the_width_of_the_embedding(factor: int) -> None:
    network = new_network("edm", NetworkSettings(**SMALL, channel_mult_emb=factor))
    assert network.model.map_layer1.weight.shape == (8 * factor, 8 * factor)


def test_a_decoder_with_skips_adds_what_each_resolution_says() -> None:
    plain = new_network("edm", NetworkSettings(**SMALL))
    skips = new_network("edm", NetworkSettings(**SMALL, decoder_type="skip"))
    more = {n for n, _ in skips.named_parameters()} - {n for n, _ in plain.named_parameters()}
    assert {name.split(".")[2] for name in more} == {"4x4_aux_norm", "4x4_aux_conv"}


def test_labels_are_dropped_while_training_alone() -> None:
    network = new_network("edm", NetworkSettings(**SMALL, label_dropout=0.99))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, labels = torch.randn(64, 1, 8, 8), torch.eye(3)[torch.arange(64) % 3]
    torch.manual_seed(0)
    dropped = (network(x, 1.0, labels) == network(x, 1.0, torch.zeros(64, 3))).flatten(1).all(1)
    assert dropped.sum() >= 60
    network.eval()
    assert not torch.equal(network(x, 1.0, labels), network(x, 1.0, torch.zeros(64, 3)))


@pytest.mark.parametrize(
    ("recipe", "gan"), [("imagenet256-dit-d2o-f", ""), ("digits-dmd-gan", "gan.")]
)
def test_a_compiled_network_has_no_maps(recipe: str, gan: str) -> None:
    schema = FinetuneSettings if not gan else ScoreSettings
    own = [f"{gan}discriminator.backbones=[{{name: self}}]"]
    load_settings(recipe, own, schema)
    with pytest.raises(UserError, match="compile: the maps of backbone self come from hooks"):
        load_settings(recipe, [*own, "compile=true"], schema)
    with pytest.raises(UserError, match="does not see form ratio's hooks"):
        load_settings("digits-ratio", ["compile=true"], ScoreSettings)
