"""The exported diffusers folder: loaded by diffusers itself, without fasttrain, the same images."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fasttrain.errors import UserError
from fasttrain.export import export_model
from fasttrain.export.pipeline import pipeline_source
from fasttrain.generation import generate
from fasttrain.models import load_model
from fasttrain.pictures import to_uint8
from tests.small_models import ADM, NCSNPP, PLAIN, write_model

LOAD = """
import sys
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

made = {}
for number, folder in enumerate(sys.argv[2:]):
    pipeline = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=folder, trust_remote_code=True
    )
    pipeline.set_progress_bar_config(disable=True)
    made[f"{number}/raw"] = pipeline(seeds=[0, 1, 2, 40], output_type="raw").images
    made[f"{number}/pt"] = pipeline(seeds=[40], output_type="pt").images
    pictures = pipeline(batch_size=2, generator=torch.Generator().manual_seed(0)).images
    assert [picture.size for picture in pictures] == [(8, 8)] * 2
save_file(made, sys.argv[1])
assert not any(name.split(".")[0].startswith("fasttrain") for name in sys.modules)
"""


def exported(tmp_path: Path, network: dict[str, Any], name: str, **metadata: str) -> Path:
    model = write_model(tmp_path / f"{name}.safetensors", network, **metadata)
    assert export_model(model, tmp_path / name, to="diffusers") == f"pipeline: {tmp_path / name}"
    return model


def test_the_file_is_self_contained() -> None:
    tree = ast.parse(pipeline_source())
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    roots = {name.split(".")[0] for name in imported}
    assert roots == {"__future__", "math", "collections", "typing", "torch", "diffusers", "PIL"}
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(defined) == len(set(defined))
    assert {"UNet", "one_step", "seed_latents", "OneStepPipeline"} <= set(defined)


def test_diffusers_loads_it_without_fasttrain_and_makes_the_same_images(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    models = [
        exported(tmp_path, PLAIN, "plain"),
        exported(tmp_path, ADM, "adm"),
        exported(tmp_path, NCSNPP, "two", sigma_mid="0.8"),
    ]
    out = tmp_path / "made.safetensors"
    cache = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    folders = [str(tmp_path / name) for name in ("plain", "adm", "two")]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(out), *folders],
        env=os.environ | cache,
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    made = load_file(out)
    for number, model in enumerate(models):
        network, info = load_model(model)
        expected = generate(info.steps(), network, [0, 1, 2, 40])
        assert torch.equal(made[f"{number}/raw"], expected)
        picture = to_uint8(generate(info.steps(), network, [40])).float() / 255
        assert torch.equal(made[f"{number}/pt"], picture)


def test_its_weights_are_a_model_file_again(tmp_path: Path) -> None:
    model = exported(tmp_path, PLAIN, "plain", sigma_mid="0.8")
    (before, info), (after, found) = (
        load_model(path)
        for path in (model, tmp_path / "plain/unet/diffusion_pytorch_model.safetensors")
    )
    assert (found.network, found.sigma, found.sigma_mid) == (info.network, 80.0, 0.8)
    a, b = before.state_dict(), after.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_weights_of_augmentation_labels_stay_behind(tmp_path: Path) -> None:
    exported(tmp_path, PLAIN | {"augment_dim": 9}, "told")
    weights = load_file(tmp_path / "told/unet/diffusion_pytorch_model.safetensors")
    assert not any("augment" in name for name in weights)
    network, info = load_model(tmp_path / "told/unet/diffusion_pytorch_model.safetensors")
    assert info.network.augment_dim == 0
    before, _ = load_model(tmp_path / "told.safetensors")
    assert torch.equal(
        generate(info.steps(), network, range(3)), generate(info.steps(), before, range(3))
    )


def test_the_folder_is_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    model = exported(tmp_path, PLAIN, "plain")
    names = sorted(str(p.relative_to(tmp_path / "plain")) for p in (tmp_path / "plain").rglob("*"))
    assert names == [
        "README.md",
        "model_index.json",
        "pipeline.py",
        "unet",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/pipeline.py",
    ]
    index = json.loads((tmp_path / "plain/model_index.json").read_text())
    assert index["sigma"] == 80.0
    assert "DiffusionPipeline.from_pretrained" in (tmp_path / "plain/README.md").read_text()
    (tmp_path / "plain/stale").write_text("x")
    export_model(model, tmp_path / "plain", to="diffusers")
    assert not (tmp_path / "plain/stale").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("x")
    with pytest.raises(UserError, match="is no exported pipeline"):
        export_model(model, tmp_path / "thesis", to="diffusers")
    assert (tmp_path / "thesis/chapter.tex").read_text() == "x"
