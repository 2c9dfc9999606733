"""A model whose channels are no image's: one line, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.calling import call
from tests.small_models import PLAIN, write_model


def test_channels_that_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model.safetensors", PLAIN | {"img_channels": 2})
    for words in (
        ("sample", model, "--seeds", "0", "--out", tmp_path / "x.png"),
        ("evaluate", model, "--data", tmp_path / "none", "--samples", 8),
        ("export", model, "--to", "hub", "--out", tmp_path / "hub"),
    ):
        status, _, error = call(capsys, *words)
        assert status == 2, error
        assert len(error.splitlines()) == 1
        assert "the model makes 2 channels, and an image has 1 or 3" in error
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
