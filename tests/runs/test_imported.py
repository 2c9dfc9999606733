"""Fine-tuning begins with a checkpoint of EDM's as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fasttrain.models.files.model_file import AUGMENT
from fasttrain.models.networks import build_network
from fasttrain.system.files import sha256
from tests.edm_files import write_snapshot
from tests.runs.calling import call

ARGUMENTS: dict[str, Any] = {
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (4,),
    "augment_dim": 9,
}


def test_a_pickle_is_a_base_model(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = build_network("edm", "SongUNet", 8, 1, 10, **ARGUMENTS)
    pickled, run = tmp_path / "network-snapshot-000001.pkl", tmp_path / "run"
    write_snapshot(pickled, network, ARGUMENTS)
    changes = [*quick, f"init={pickled}", f"run={run}"]
    status, _, error = call(capsys, "finetune", "digits-d2o-f", *changes, "images=64")
    assert status == 0, error
    base, expected = load_file(run / "base.safetensors"), network.state_dict()
    del expected[AUGMENT]
    assert base.keys() == expected.keys()
    assert all(torch.equal(base[name], value) for name, value in expected.items())

    digest = sha256(run / "base.safetensors")
    (run / "base.safetensors").unlink()
    with pytest.warns(UserWarning, match="base.safetensors was missing or damaged: restored from"):
        status, _, error = call(capsys, "finetune", "digits-d2o-f", *changes, "images=96")
    assert status == 0, error
    assert sha256(run / "base.safetensors") == digest
