"""Where and how the settings have a network trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fasttrain.models.build import (
    activation_dtype,
    assemble,
    memory_format,
    new_network,
    prepare_network,
)
from fasttrain.models.freezing import apply_freezing, frozen_names
from fasttrain.models.networks.unet_block import UNetBlock
from fasttrain.settings import FinetuneSettings, NetworkSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import ONE_PROCESS

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings_with(*overrides: str) -> FinetuneSettings:
    return load_settings("digits-d2o-f", overrides, FinetuneSettings)


@pytest.mark.parametrize(
    ("changes", "device", "dtype", "layout"),
    [
        ([], CPU, torch.float32, torch.contiguous_format),
        ([], GPU, torch.bfloat16, torch.channels_last),
        (["precision=bfloat16"], CPU, torch.bfloat16, torch.channels_last),
        (
            ["precision=bfloat16", "memory_format=contiguous"],
            CPU,
            torch.bfloat16,
            torch.contiguous_format,
        ),
        (["precision=float32"], GPU, torch.float32, torch.channels_last),
        (["memory_format=channels_last"], CPU, torch.float32, torch.channels_last),
        (["memory_format=contiguous"], GPU, torch.bfloat16, torch.contiguous_format),
    ],
)
def test_auto_is_bfloat16_and_channels_last_on_a_gpu(
    changes: list[str], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    settings = settings_with(*changes)
    assert activation_dtype(settings, device) == dtype
    assert memory_format(settings, device) == layout


def test_frozen_weights_are_held_as_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_with(
        "precision=bfloat16", "memory_format=channels_last", "recompute_norms=true", "compile=true"
    )
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    network = new_network("one_step", settings.network)
    apply_freezing(network.model, settings.freeze)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    prepare_network(network, settings, CPU)
    assert compiled == [network.model]
    kept = frozen_names(network, settings.freeze)
    assert kept
    for name, parameter in network.named_parameters():
        frozen = name in kept
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32), name
        assert torch.equal(parameter, before[name].to(parameter.dtype)), name
        if frozen and parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
    blocks = [module for module in network.modules() if isinstance(module, UNetBlock)]
    assert blocks
    assert all(block.recompute for block in blocks)

    seen = []
    looked_at = assemble(settings, network.state_dict(), ONE_PROCESS)
    for each in (network, looked_at):
        each.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 1, 8, 8)
    low, exact = network(x, 80.0), looked_at(x, 80.0)
    assert [p.data_ptr() for p in looked_at.parameters()] == [  # it costs no memory
        p.data_ptr() for p in network.parameters()
    ]
    assert [t.dtype for t in seen] == [torch.bfloat16, torch.float32]
    assert low.dtype == exact.dtype == torch.float32
    assert 0 < float((low - exact).detach().norm() / exact.detach().norm()) < 0.05


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            {"model_type": "DhariwalUNet", "encoder_type": "skip"},
            "network: encoder_type: a DhariwalUNet has no such setting; remove it",
        ),
        ({"options": {"patch": 2}}, "network: options.patch: a SongUNet has no such option"),
        ({"options": {"num_blocks": 2}}, "network: options.num_blocks: a SongUNet has no such"),
        ({"options": {"out_channels": 6}}, "network: options.out_channels: a SongUNet has no such"),
    ],
)
def test_what_a_network_does_not_take_is_an_error(network: dict[str, Any], expected: str) -> None:
    settings = settings_with().network.model_dump() | network
    with pytest.raises(UserError) as error, torch.device("meta"):
        new_network("one_step", NetworkSettings(**settings))
    assert str(error.value).startswith(expected)


def test_recompute_norms_needs_blocks_with_norms() -> None:
    settings = settings_with("recompute_norms=true")
    network = new_network("one_step", settings.network)
    network.blocks = lambda: [torch.nn.Linear(1, 1)]
    with pytest.raises(UserError, match="a SongUNet has no norms to recompute; remove it"):
        prepare_network(network, settings, CPU)
