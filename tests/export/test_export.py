"""`fasttrain export` of model files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttrain.errors import UserError
from fasttrain.export import export_model
from tests.runs.calling import call
from tests.small_models import NCSNPP, PLAIN, write_model


def test_of_a_file_little_is_known_and_no_more_is_said(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", NCSNPP, task="pretrain")
    export_model(model, tmp_path / "out.safetensors")
    card = (tmp_path / "out.md").read_text()
    assert "A diffusion model for images of 8x8, 3 channels, no classes" in card
    assert "unknown: ask where the base model came from" in card
    assert "not recorded in the model's file" in card


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = write_model(tmp_path / "edm.safetensors", PLAIN, task="pretrain")
    for to in ("diffusers", "onnx"):
        with pytest.raises(UserError, match="fine-tune it first"):
            export_model(model, tmp_path / "x", to=to)  # type: ignore[arg-type]
    status, _, error = call(capsys, "export", model, "--to", "tensorflow")
    assert (status, error) == (
        2,
        "fasttrain: error: --to tensorflow: choose one of safetensors, diffusers, onnx\n",
    )
    with pytest.raises(UserError, match="is a folder: name the file"):
        export_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edm.safetensors"]
