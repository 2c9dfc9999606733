"""Adapters: their formulas, that nothing changes at the start, and that merging changes nothing."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch

from fasttrain.models.adapters import ADAPTER, LowRank, Rotation, adapt, merged
from fasttrain.models.audit import audit, audit_of, start_of
from fasttrain.models.build import new_network
from fasttrain.models.freezing import apply_freezing, frozen_names, select_trained
from fasttrain.settings import FinetuneSettings, NetworkSettings
from fasttrain.settings.adapt import AdaptSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from tests.models.networks.test_families import BASE, NETWORKS
from tests.small_models import ADM, NCSNPP, PLAIN

ALL: dict[str, dict[str, Any]] = {"DDPM++": PLAIN, "NCSN++": NCSNPP, "EDM's ADM": ADM}
ALL |= {name: BASE | network for name, network in NETWORKS.items()}
if importlib.util.find_spec("diffusers"):
    unet = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    unet |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "num_class_embeds": 4}
    unet |= {"up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 8}
    dit = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8}
    dit |= {"in_channels": 3, "out_channels": 3, "patch_size": 2, "num_embeds_ada_norm": 4}
    for name, config in (("DiffusersUNet", unet), ("DiffusersTransformer", dit)):
        options = {"config": json.dumps(config)}
        ALL[name] = BASE | {"model_type": name, "options": options}


def built(name: str) -> Any:
    torch.manual_seed(0)
    network = new_network("edm", NetworkSettings(**ALL[name])).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def images(network: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, network.img_channels, 8, 8, generator=generator)
    labels = torch.eye(network.label_dim)[:2] if network.label_dim else None
    return network(x, 1.0, labels)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["lora", "rotate"])
def test_adapters_begin_as_nothing_train_alone_and_merge(name: str, kind: str) -> None:
    network = built(name)
    layers = ("conv", "attention", "mlp", "skip", "embedding")
    has = {network.model.kind_of(n) for n, p in network.model.named_parameters() if p.dim() > 1}
    chosen = tuple(layer for layer in layers if layer in has)
    before = {n: w.clone() for n, w in network.state_dict().items()}
    start = images(network)
    network.requires_grad_(False)
    adapt(network.model, AdaptSettings(kind=kind, rank=2, layers=chosen), seed=3)
    assert torch.equal(images(network), start)

    train = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert train
    assert all(ADAPTER in n for n in train)
    optimizer = torch.optim.Adam(train.values(), lr=0.02)
    for _ in range(2):  # what is zero at the start hides the other half's gradient once
        optimizer.zero_grad()
        images(network).square().mean().backward()
        optimizer.step()
    dead = {n for n, p in train.items() if p.grad is None or not p.grad.any()}
    assert len(dead) < len(train) / 10, dead  # some layers are behind zero inputs
    after = network.state_dict()
    assert all(torch.equal(after[n], w) for n, w in before.items())
    end = images(network).detach()
    assert not torch.allclose(end, start, rtol=1e-3, atol=1e-3)

    plain = built(name)
    plain.load_state_dict(merged(after))
    torch.testing.assert_close(images(plain), end, rtol=1e-4, atol=1e-5)


def test_a_rotation_keeps_lengths_and_is_the_cayley_map() -> None:
    torch.manual_seed(0)
    weight = torch.randn(10, 3, 2, 2)
    layer = Rotation(weight, 3, torch.Generator())
    torch.nn.init.normal_(layer.second)
    turned = layer(weight).detach().flatten(1)
    u, v = layer.first.detach().double(), layer.second.detach().double()
    skew = u @ v.T - v @ u.T
    one = torch.eye(10, dtype=torch.float64)
    rotation = torch.linalg.solve(one - skew / 2, one + skew / 2)
    torch.testing.assert_close(rotation @ rotation.T, one)
    torch.testing.assert_close(
        turned.double(), rotation @ weight.flatten(1).double(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(turned.norm(dim=0), weight.flatten(1).norm(dim=0))
    assert not torch.allclose(turned, weight.flatten(1), atol=0.1)


def test_low_rank_is_of_the_rank_that_fits() -> None:
    weight = torch.randn(10, 3, 2, 2)
    layer = LowRank(weight, 2, torch.Generator().manual_seed(1))
    torch.nn.init.normal_(layer.up)
    change = (layer(weight) - weight).detach().flatten(1)
    assert int(torch.linalg.matrix_rank(change)) == 2
    torch.testing.assert_close(change, (layer.up @ layer.down).detach())
    assert LowRank(weight, 64, torch.Generator()).up.shape == (10, 10)
    assert Rotation(weight, 64, torch.Generator()).first.shape == (10, 5)


def test_bfloat16_weights_are_adapted_in_float32() -> None:
    weight = torch.randn(8, 6).bfloat16()
    for kind in (LowRank, Rotation):
        layer = kind(weight, 2, torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(weight)
        assert torch.equal(result, weight.float())


def test_the_seed_draws_the_same_adapters_everywhere() -> None:
    states = []
    for seed in (1, 1, 2):
        network = built("DDPM++")
        torch.manual_seed(len(states))
        adapt(network.model, AdaptSettings(kind="lora"), seed=seed)
        states.append({n: p for n, p in network.named_parameters() if n.endswith("down")})
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not any(torch.equal(states[0][n], states[2][n]) for n in states[0])


def tuned(*overrides: str) -> FinetuneSettings:
    return load_settings("digits-d2o-f", overrides, FinetuneSettings)


def test_besides_says_what_else_trains() -> None:
    alone = tuned("adapt={kind: lora, rank: 2, layers: [attention]}")
    both = tuned("adapt={kind: lora, rank: 2, layers: [attention], besides: unfrozen}")
    names = {}
    for key, settings in (("alone", alone), ("both", both)):
        network = new_network("one_step", settings.network)
        kept = frozen_names(network.model, 1)
        select_trained(network, settings)
        names[key] = {n for n, p in network.model.named_parameters() if p.requires_grad}
        weights = {n for n in names[key] if ADAPTER not in n}
        qkv = {n for n in weights if "qkv.weight" in n}
        assert not qkv  # adapted, so that it stays
        if key == "both":
            every = {n for n, _ in network.model.named_parameters() if ADAPTER not in n}
            adapted = {n for n in every if "qkv.weight" in n or "proj.weight" in n}
            assert weights == every - kept - adapted
        else:
            assert not weights
    assert {n for n in names["both"] if ADAPTER in n} == names["alone"]


def test_the_audit_tells_kinds_and_the_start_its_gain() -> None:
    settings = tuned("adapt={kind: rotate, rank: 2}")
    found = audit_of(settings)
    rows = {(row.type, row.kind): row for row in found.rows}
    assert rows["block.conv", "conv"].trainable == 0
    assert rows["block.conv.adapter", "adapter"].trainable_fraction == 1
    assert found.total.trainable == sum(r.trainable for r in found.rows if r.kind == "adapter")
    assert rows["block.norm", "norm"].parameters > 0
    line = start_of(settings, settings.sigma)
    assert line.startswith("prediction edm: the step starts at noise level 80, where an error")
    assert "counts 0.5 times" in line
    other = tuned("network.prediction.kind=epsilon")
    assert "noise level 2.5" in start_of(other, other.sigma)
    assert "counts 2.5 times" in start_of(other, other.sigma)
    for name in ALL:  # every network says of each of its parameters what it is
        network = built(name)
        apply_freezing(network, 1)
        assert {row.kind for row in audit(network).rows} >= {"embedding", "attention", "ends"}
        assert "" not in {row.kind for row in audit(network).rows}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("adapt={kind: lora, layers: [mlp]}", "adapt.layers: a SongUNet has no mlp: it has"),
        ("adapt={kind: lora, layers: [conv, conv]}", "a kind of layer is named twice"),
        ("adapt={kind: lora, layers: []}", "adapt.layers"),
        ("adapt={kind: dora}", "adapt.kind"),
        ("adapt={kind: lora, rank: 0}", "adapt.rank"),
    ],
)
def test_a_mistake_is_one_line(change: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        audit_of(tuned(change))
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_adapters_of_a_file_are_checked() -> None:
    weight = {"a.weight": torch.zeros(4, 4)}
    with pytest.raises(UserError, match=r"a.weight has an adapter of an unknown kind: x"):
        merged(weight | {"a.adapter.x": torch.zeros(1)})
    with pytest.raises(UserError, match=r"b.weight has an adapter of an unknown kind"):
        merged(weight | {"b.adapter.up": torch.zeros(4, 1), "b.adapter.down": torch.zeros(1, 4)})
    with pytest.raises(UserError, match=r"a.weight has an adapter that does not fit it"):
        merged(weight | {"a.adapter.up": torch.zeros(3, 1), "a.adapter.down": torch.zeros(1, 4)})
