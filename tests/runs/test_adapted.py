"""Fine-tuning of adapters: what checkpoints hold, exact resume, and the merged model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fasttrain.checkpoints import checkpoint
from fasttrain.models.adapters import ADAPTER, merged
from fasttrain.models.load import load_model
from tests.runs.calling import call

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["lora", "rotate"])
def test_adapters_alone_are_kept_resumed_and_merged(
    kind: str, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*quick, f"adapt={{kind: {kind}, rank: 2}}", "generator.rate=1e-3"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run, images in ((whole, 96), (halves, 64), (halves, 96)):
        status, said, error = call(
            capsys, "finetune", "digits-d2o-f", *changes, f"run={run}", f"images={images}"
        )
        assert status == 0, error
        assert "block.conv.adapter" in said
    step, other = (checkpoint.find(run / "checkpoints") for run in (whole, halves))
    for name in ("generator", "ema"):
        tensors = step.tensors(name)
        assert all(torch.equal(value, other.tensors(name)[key]) for key, value in tensors.items())
        trained = {n for n in tensors if not n.endswith(("resample_filter", "steps", "freqs"))}
        assert trained
        assert all(ADAPTER in n for n in trained)

    exported = tmp_path / "generator.safetensors"
    status, _, error = call(capsys, "export", whole, "--out", exported)
    assert status == 0, error
    base, result = load_file(whole / "base.safetensors"), load_file(exported)
    assert result.keys() == base.keys()
    expected = merged(base | step.tensors("ema"))
    assert all(torch.equal(result[n], expected[n]) for n in result)
    moved = {n for n in base if not torch.equal(base[n], result[n])}
    adapted = {n.partition(ADAPTER)[0] + ".weight" for n in step.tensors("ema")}
    assert moved == adapted

    x, labels = torch.randn(2, 1, 8, 8), torch.eye(10)[:2]
    with torch.no_grad():
        images = [load_model(model)[0](x, 80.0, labels) for model in (whole, exported)]
    assert torch.equal(*images)
    for model in (whole, exported):
        status, _, error = call(capsys, "sample", model, "--out", tmp_path / "a.png")
        assert status == 0, error
    # A merged model is one like any other to begin with; other adapters are another run.
    again = ["finetune", "digits-d2o-f", *changes, f"init={whole}", "images=32"]
    status, _, error = call(capsys, *again, f"run={tmp_path / 'again'}")
    assert status == 0, error
    begun = load_file(tmp_path / "again" / "base.safetensors")
    assert all(torch.equal(begun[n], result[n]) for n in result)
    status, _, error = call(
        capsys, "finetune", "digits-d2o-f", *changes, "adapt.rank=3", f"run={whole}"
    )
    assert status == 2
    assert "adapt.rank was 2 and is 3" in error
