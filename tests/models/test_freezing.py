"""Freezing as the networks say it: exact counts of the published networks, built without memory on
the meta device, and the audit's arithmetic."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fasttrain.models.audit import audit
from fasttrain.models.freezing import apply_freezing, frozen_names
from fasttrain.models.networks import Precond, build_network
from fasttrain.models.networks.unet import first_level
from fasttrain.system.errors import UserError

NCSNPP: dict[str, Any] = {
    "model_type": "SongUNet",
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10-uncond": NCSNPP | {"img_resolution": 32, "label_dim": 0, "channel_mult": [2, 2, 2]},
    "cifar10-cond": NCSNPP | {"img_resolution": 32, "label_dim": 10, "channel_mult": [2, 2, 2]},
    "ffhq-64": NCSNPP | {"img_resolution": 64, "label_dim": 0, "channel_mult": [1, 2, 2, 2]},
    "imagenet-64": {"model_type": "DhariwalUNet", "img_resolution": 64, "label_dim": 1000},
}
COUNTS = {  # parameters, then trainable at levels 1, 2, 3 and their percentages
    "cifar10-uncond": (56_395_523, (8_797_955, 7_613_699, 5_380_355), (15.600, 13.501, 9.540)),
    "cifar10-cond": (56_398_339, (8_800_771, 7_616_515, 5_383_171), (15.605, 13.505, 9.545)),
    "ffhq-64": (62_758_787, (10_144_643, 8_960_387, 6_463_875), (16.164, 14.278, 10.300)),
    "imagenet-64": (295_899_267, (62_833_347, 38_575_107, 29_091_651), (21.235, 13.037, 9.832)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_exact_counts_of_the_published_networks(name: str) -> None:
    with torch.device("meta"):
        net = build_network("one_step", img_channels=3, **PUBLISHED[name])
    parameters, trainable, percentages = COUNTS[name]
    for level, count, percentage in zip((1, 2, 3), trainable, percentages, strict=True):
        apply_freezing(net, level)  # type: ignore[arg-type]
        found = audit(net)
        assert (found.total.parameters, found.total.trainable) == (parameters, count)
        assert round(100 * found.trainable_fraction, 3) == percentage
    apply_freezing(net, "none")
    assert audit(net).trainable_fraction == 1.0


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("model.enc.32x32_block0.conv0.weight", 1),
        ("model.enc.16x16_down.conv1.bias", 1),
        ("model.dec.8x8_in0.proj.weight", 1),
        ("model.dec.16x16_up.conv0.weight", 1),
        ("model.dec.8x8_in0.qkv.weight", 2),
        ("model.enc.16x16_down.skip.weight", 3),
        ("model.enc.32x32_block0.norm0.weight", None),
        ("model.enc.32x32_block0.affine.bias", None),
        ("model.enc.32x32_conv.weight", None),
        ("model.enc.16x16_aux_residual.weight", None),
        ("model.dec.32x32_aux_conv.weight", None),
        ("model.out_conv.weight", None),
        ("model.map_label.weight", None),
    ],
)
def test_levels_spare_the_outside(name: str, level: int | None) -> None:
    assert first_level(name) == level


def test_levels_nest() -> None:
    net = tiny()
    groups = net.freezing()
    assert list(groups) == [1, 2, 3]
    assert all(groups.values())
    assert groups == {n: [f"model.{name}" for name in v] for n, v in net.model.freezing().items()}
    names = {name for name, _ in net.named_parameters()}
    before: set[str] = frozen_names(net, "none")
    assert before == set()
    for level in (1, 2, 3):
        found = frozen_names(net, level)  # type: ignore[arg-type]
        assert found == before | set(groups[level])
        assert before < found < names
        before = found


def tiny() -> Precond:
    return build_network(
        "edm", "SongUNet", 8, 1, 3, model_channels=8, channel_mult=[1, 2], num_blocks=1
    )


def test_the_complement_and_the_norms_alone() -> None:
    with torch.device("meta"):
        net = build_network("one_step", img_channels=3, **PUBLISHED["cifar10-cond"])
    every = {name for name, _ in net.named_parameters()}
    one = frozen_names(net, 1)
    assert frozen_names(net, "all-but-1") == every - one
    norms = every - frozen_names(net, "all-but-norms")
    assert norms
    assert not norms & one
    assert all("norm" in name for name in norms)
    assert frozen_names(net.model, "all-but-norms") == {
        name.removeprefix("model.") for name in every - norms
    }
    with torch.device("meta"):
        dit = build_network(
            "one_step", img_channels=3, img_resolution=8, label_dim=0, model_type="DiT"
        )
    with pytest.raises(UserError, match="has no norms that train"):
        frozen_names(dit, "all-but-norms")


def test_apply_freezing_is_reversible_and_stops_gradients() -> None:
    net = tiny()
    apply_freezing(net, 2)
    net(torch.randn(2, 1, 8, 8), 1.0, torch.eye(3)[:2]).sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name in frozen_names(net, 2)), name
    apply_freezing(net, 1)
    assert all(p.requires_grad for name, p in net.named_parameters() if "qkv" in name)


def test_audit_adds_up_and_prints() -> None:
    net = tiny()
    apply_freezing(net, 1)
    found = audit(net)
    rows = {row.type: row for row in found.rows}
    assert rows["block.conv"].trainable == rows["block.proj"].trainable == 0
    assert rows["block.norm"].trainable_fraction == rows["enc.conv"].trainable_fraction == 1
    assert rows["enc.conv"].parameters == 8 * 1 * 9 + 8
    assert found.total.parameters == sum(p.numel() for p in net.parameters())
    assert found.total.trainable == sum(p.numel() for p in net.parameters() if p.requires_grad)

    data = json.loads(json.dumps(found.to_dict()))
    assert data["trainable"] == sum(row["trainable"] for row in data["rows"])
    assert data["trainable_fraction"] == data["trainable"] / data["parameters"]

    lines = found.table().splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    assert lines[-1].split()[:3] == ["total", f"{data['parameters']:,}", f"{data['trainable']:,}"]


def test_unknown_level_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="freezing level 4 is unknown: choose one of none, 1, 2, 3, all-but-1"
    ):
        frozen_names(tiny(), 4)  # type: ignore[arg-type]
