"""Fine-tuning from every family's file: two iterations, resumed, sampled and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fasttrain_data import convert
from tests.model_goldens import ModelCase, cases
from tests.runs.calling import call

pytestmark = pytest.mark.slow

PIXELS = [c for c in cases() if c.about["image"][0] == 3 and c.about["classes"] in (0, 10)]
"""Those that the digits, in colour, are images for; latents need latent shards."""


@pytest.mark.parametrize("case", PIXELS, ids=lambda case: case.name)
def test_a_family_is_imported_tuned_resumed_and_exported(
    case: ModelCase, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "diffusers" in case.about["family"]:
        pytest.importorskip("diffusers")
    model, network, run = tmp_path / "m.safetensors", tmp_path / "network.yaml", tmp_path / "run"
    said = [*case.arguments(tmp_path / "config.json"), "--out", model, "--network", network]
    status, out, error = call(capsys, "import", *said)
    assert status == 0, error
    assert "prediction: " in out

    status, out, error = call(
        capsys, "sample", model, "--out", tmp_path / "a.png", "--seeds", "0-3"
    )
    assert status == 0, error

    recipe = tmp_path / "tune.yaml"
    settings = (Path(__file__).parents[2] / "configs" / "digits-d2o-f.yaml").read_text()
    start, _, rest = settings.partition("network:\n")
    rest = rest[rest.index("freeze:") :]
    recipe.write_text(f"extends: {network}\n{start}{rest}")
    channels, size, _ = case.about["image"]
    data = tmp_path / "data"
    convert("digits", data, resolution=size, channels=channels)
    changes = [item for item in quick if not item.startswith(("network.", "data.path=", "init="))]
    changes += [f"init={model}", f"data.path={data}", f"run={run}", "checkpoint.every=32"]
    status, out, error = call(capsys, "finetune", recipe, *changes, "images=64")
    assert status == 0, error
    status, out, error = call(capsys, "finetune", recipe, *changes, "images=96")
    assert status == 0, error

    exported = tmp_path / "generator.safetensors"
    status, out, error = call(capsys, "export", run, "--out", exported)
    assert status == 0, error
    before, after = load_file(model), load_file(exported)
    moved = [n for n in after if not torch.equal(before[n].float(), after[n].float())]
    assert moved
    assert all(value.isfinite().all() for value in after.values())
    status, out, error = call(capsys, "sample", exported, "--out", tmp_path / "b.png")
    assert status == 0, error
