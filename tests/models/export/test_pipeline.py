"""The exported diffusers folder: loaded by diffusers itself, without fasttrain, the same images."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fasttrain.models.export import export_model
from fasttrain.models.export.pipeline import pipeline_source
from fasttrain.models.load import load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import to_uint8
from fasttrain.sampling.preview import preview_png
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import NetworkSettings
from fasttrain.system.errors import UserError
from tests.small_models import ADM, NCSNPP, PLAIN, small_network, write_model

LOAD = """
import sys
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

def load(folder, **options):
    return DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=folder, trust_remote_code=True, **options
    )


made = {}
pipelines = [load(folder) for folder in [*sys.argv[2:], sys.argv[2]]]  # then all are used
for number, pipeline in enumerate(pipelines):
    pipeline.set_progress_bar_config(disable=True)
    made[f"{number}/raw"] = pipeline(seeds=[0, 1, 2, 40], output_type="raw").images
    made[f"{number}/pt"] = pipeline(seeds=[40], output_type="pt").images
    pictures = pipeline(batch_size=2, generator=torch.Generator().manual_seed(0)).images
    assert [picture.size for picture in pictures] == [(8, 8)] * 2
for number, folder in enumerate(sys.argv[2:]):
    again = pipelines[number]
    again.save_pretrained(folder + "-again")
    again = load(folder + "-again")
    again.set_progress_bar_config(disable=True)
    raw = again(seeds=[0, 1, 2, 40], output_type="raw", num_inference_steps=1)
    made[f"{number}/again"] = raw.images
    if again.config.class_names:
        named = again(seeds=[3], class_labels="c7", output_type="raw").images
        assert torch.equal(named, again(seeds=[3], class_labels=7, output_type="raw").images)
    pipeline = load(folder, torch_dtype=torch.bfloat16)
    assert pipeline.unet.model.map_layer0.weight.dtype == torch.bfloat16
    made[f"{number}/low"] = pipeline(seeds=[0, 1, 2, 40], output_type="raw").images
save_file(made, sys.argv[1])
assert not any(name.split(".")[0].startswith("fasttrain") for name in sys.modules)
"""


def exported(tmp_path: Path, network: dict[str, Any], name: str, **metadata: str) -> Path:
    model = write_model(tmp_path / f"{name}.safetensors", network, **metadata)
    assert export_model(model, tmp_path / name, to="diffusers") == f"pipeline: {tmp_path / name}"
    return model


def test_the_file_is_self_contained() -> None:
    plain = small_network(NetworkSettings(**PLAIN)).model.plain()
    tree = ast.parse(pipeline_source(plain))
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    roots = {name.split(".")[0] for name in imported}
    assert roots == {
        "__future__",
        "math",
        "collections",
        "typing",
        "torch",
        "diffusers",
        "PIL",
        "json",
        "pathlib",
        "shutil",
        "warnings",
    }
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(defined) == len(set(defined))
    assert {"UNet", "one_step", "seed_latents", "OneStepPipeline"} <= set(defined)


def test_diffusers_loads_it_without_fasttrain_and_makes_the_same_images(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    models = [
        exported(tmp_path, PLAIN, "plain", classes=json.dumps([f"c{n}" for n in range(10)])),
        exported(tmp_path, ADM, "adm"),
        exported(tmp_path, NCSNPP, "two", sigma_mid="0.8"),
    ]
    export_model(models[2], tmp_path / "two", to="hub", picture=preview_png)  # a folder like them
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
    assert torch.equal(made["3/raw"], made["0/raw"])
    for number, model in enumerate(models):
        network, info = load_model(model)
        expected = generate(Sampler.of(info), network, [0, 1, 2, 40])
        assert torch.equal(made[f"{number}/raw"], expected)
        assert torch.equal(made[f"{number}/again"], expected)
        for folder in (model.with_suffix(""), Path(f"{model.with_suffix('')}-again")):
            back, found = load_model(folder)  # by every command that takes a model
            assert (found.name, found.classes) == (folder.name, info.classes)
            assert (found.sigma, found.sigma_mid) == (info.sigma, info.sigma_mid)
            assert torch.equal(generate(Sampler.of(found), back, [0, 1, 2, 40]), expected)
        error = (made[f"{number}/low"] - expected).norm() / expected.norm()
        assert 0 < error < 0.05
        picture = to_uint8(generate(Sampler.of(info), network, [40])).float() / 255
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
        generate(Sampler.of(info), network, range(3)), generate(Sampler.of(info), before, range(3))
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
    (tmp_path / "plain/README.md").write_text("stale")
    (tmp_path / "plain.tmp").mkdir()
    export_model(model, tmp_path / "plain", to="diffusers")
    assert (tmp_path / "plain/README.md").read_text() != "stale"
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "plain.safetensors", "plain.tmp"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chapter.tex", "x"),
        ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}'),
        ("model_index.json", "{"),
        ("notes.txt", "beside an exported pipeline"),
    ],
)
def test_other_folders_are_left_alone(name: str, text: str, tmp_path: Path) -> None:
    model, folder = write_model(tmp_path / "m.safetensors", PLAIN), tmp_path / "folder"
    if "exported" in text:
        export_model(model, folder, to="diffusers")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match="is no exported pipeline, or holds more"):
        export_model(model, folder, to="diffusers")
    assert (folder / name).read_text() == text


def test_a_failing_rename_leaves_the_earlier_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exported(tmp_path, PLAIN, "plain")
    before, rename = (tmp_path / "plain/README.md").stat().st_ino, Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        export_model(model, tmp_path / "plain", to="diffusers")
    assert (tmp_path / "plain/README.md").stat().st_ino == before
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "plain.safetensors"}


def small_pipeline() -> Any:
    pytest.importorskip("diffusers")
    from fasttrain.models.export.diffusers_part import OneStepPipeline, OneStepUNet

    network = {**PLAIN, "model_type": "SongUNet"}
    torch.manual_seed(0)
    unet = OneStepUNet(network)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return OneStepPipeline(unet)


def test_class_labels_and_generators() -> None:
    pipeline = small_pipeline()

    def made(**options: Any) -> torch.Tensor:
        return pipeline(output_type="raw", **options).images

    seeds = [3, 4]
    expected = made(seeds=seeds, class_labels=[7, 7])
    for labels in (7, np.int64(7), torch.tensor([7, 7]), np.array([7, 7]), (np.int32(7), 7)):
        assert torch.equal(made(seeds=seeds, class_labels=labels), expected)
    assert torch.equal(made(seeds=iter(seeds)), made(seeds=seeds, class_labels=seeds))
    for labels in ([7], [7, 7, 7], [7, 10], [-1, 7], 10, 0.5, [True, False]):
        with pytest.raises(ValueError, match="give 2 whole numbers, or one for all, of the 10"):
            made(seeds=seeds, class_labels=labels)

    each = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    first = made(generator=torch.Generator().manual_seed(1), class_labels=5)
    assert torch.allclose(
        made(batch_size=2, generator=each, class_labels=5)[:1], first, rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match="2 generators for 3 images"):
        made(batch_size=3, generator=each)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_inference_steps", value) for value in (0, -1, 0.5, True, "1")),
        ("batch_size", 0),
        ("seeds", []),
        ("output_type", "jpg"),
    ],
)
def test_a_wrong_argument_is_a_value_error(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}") as caught:
        small_pipeline()(**{name: value})
    assert "\n" not in str(caught.value)
