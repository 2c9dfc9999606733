"""EDM's checkpoints are read whole and exactly."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fasttrain.models.files.edm_pickle import read_checkpoint
from fasttrain.models.files.model_file import read_model_file
from fasttrain.models.load import load_model
from tests.edm_files import edm_modules, snapshot, write_snapshot, write_training_state
from tests.models.files.edm_networks import PUBLISHED, SMALL, network_of, small


def assert_same_weights(path: Path, network: nn.Module) -> None:
    found = read_model_file(path).weights
    expected = network.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == torch.float32


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_network(name: str, tmp_path: Path) -> None:
    kind, resolution, label_dim, arguments = PUBLISHED[name]
    network = network_of(kind, resolution, label_dim, arguments)
    path = tmp_path / f"{name}.pkl"
    write_snapshot(path, network, arguments)
    assert_same_weights(path, network)
    loaded, info = load_model(path)
    assert (info.task, info.sigma, info.name, info.images) == ("pretrain", None, path.name, None)
    said = info.network.model_dump()
    assert {key: said[key] for key in arguments} == arguments
    assert (said["model_type"], said["img_resolution"], said["label_dim"]) == PUBLISHED[name][:3]
    if not label_dim:
        return
    x, labels = torch.randn(1, 3, resolution, resolution), torch.eye(label_dim)[:1]
    with torch.no_grad():
        assert torch.equal(loaded(x, 5.0, labels), network(x, 5.0, labels))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_has_bytes_or_stands_for_them(protocol: int, tmp_path: Path) -> None:
    network, path = small(), tmp_path / "snapshot.pkl"
    write_snapshot(path, network, SMALL, protocol=protocol)
    assert path.read_bytes()[:2] == bytes([0x80, protocol])
    assert_same_weights(path, network)


def test_arguments_by_position_and_defaults_of_edm(tmp_path: Path) -> None:
    """EDM's preconditioner makes a DhariwalUNet where no type is given, and its own defaults are
    not those of our settings."""
    network = network_of("DhariwalUNet", 64, 0, {"model_channels": 8})
    value = snapshot(network, {})
    state = value["ema"].meta["state"]
    state |= {"_init_args": (64, 3, 0, True), "_init_kwargs": {"model_channels": np.int64(8)}}
    with edm_modules():
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    info = read_model_file(tmp_path / "x.pkl").info
    assert info is not None
    assert info.network.model_type == "DhariwalUNet"
    assert info.network.channel_mult == (1, 2, 3, 4)
    assert info.network.attn_resolutions == (32, 16, 8)
    assert (info.network.num_blocks, info.network.dropout) == (3, 0.1)


@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 4}], ids=["protocol 2", "protocol 4"])
def test_training_state(how: dict[str, Any], tmp_path: Path) -> None:
    network, path = small(), tmp_path / "training-state-000123.pt"
    write_training_state(path, network, SMALL, **how)
    assert_same_weights(path, network)
    assert read_checkpoint(path).part == "net"
