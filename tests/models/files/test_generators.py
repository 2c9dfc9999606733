"""Whether a file of others is a generator, and of which noise level: what it says, and the user."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fasttrain.models.files.model_file import read_model_file
from fasttrain.models.load import load_model
from fasttrain.models.networks import build_network
from tests.edm_files import write_snapshot
from tests.model_goldens import cases
from tests.runs.calling import call

SMALL = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}


def test_a_pickle_of_d2o_is_a_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "x.pkl", tmp_path / "x.safetensors"
    torch.manual_seed(0)
    network = build_network("edm", "SongUNet", 8, 1, 10, **SMALL)
    write_snapshot(model, network, SMALL, class_name="D2OPrecond")
    status, _, error = call(capsys, "import", model, "--one-step", "--sigma", "40")
    assert status == 0, error
    found, info = load_model(out)
    assert (info.task, info.sigma, found.row.constants.eps) == ("finetune", 40.0, 0.002)
    status, _, error = call(capsys, "import", model, "--diffusion")
    assert status == 2
    assert "a D2OPrecond is a one-step generator" in error


@pytest.mark.parametrize(
    ("said", "sigma"),
    [
        ([], 80.0),
        (["--one-step", "--sigma", "40"], 40.0),
        (["--diffusion"], None),
        (["one_step=false"], None),
    ],
)
def test_whether_a_consistency_model_takes_one_step(
    said: list[str],
    sigma: float | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = next((case for case in cases() if case.name == "cm-distilled"), None)
    if case is None:
        pytest.skip("no such case in this folder")
    out = tmp_path / "model.safetensors"
    arguments = case.arguments(tmp_path / "c.json")
    status, _, error = call(capsys, "import", *arguments, *said, "--out", out)
    assert status == 0, error
    info = read_model_file(out).info
    assert info is not None
    assert info.sigma == sigma
