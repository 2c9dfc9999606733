"""The folder for the Hugging Face hub: what its pages and its own library read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fasttrain.evaluation.kept import card_quality
from fasttrain.evaluation.protocol import protocol_of
from fasttrain.models.export import export_model
from fasttrain.models.load import load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import grid_image
from fasttrain.sampling.preview import preview_png
from fasttrain.sampling.sampler import Sampler
from tests.runs.calling import call
from tests.small_models import PLAIN, write_model


def evaluation(run: Path) -> None:
    """A result at 640 images: the run's own row and the real images'."""
    reference = {"data": "digits", "images": 9, "size": 8, "resized": False, "content": "abc"}
    protocol = protocol_of({"extractor": "lite2"}, reference, images=898, components=64)
    rows = {
        name: {"title": name, "metrics": {"fd": {"value": value}, "kd": {"value": 0.125}}}
        for name, value in (("real_floor", 14.5), ("one_step_after", 39.4))
    }
    model = {"name": "m", "images_seen": 640}
    (run / "evaluation.json").write_text(
        json.dumps({"rows": rows, "protocol": protocol, "model": model})
    )


def test_what_the_hub_reads(tmp_path: Path) -> None:
    evaluation(tmp_path)
    model, out = write_model(tmp_path / "gen.safetensors", PLAIN), tmp_path / "hub"
    options = {"quality": card_quality(tmp_path, 640), "picture": preview_png}
    said = export_model(model, out, to="hub", base_licence="CC BY-NC-SA 4.0", **options)
    assert said == f"hub folder: {out}\nto publish it: hf upload USER/NAME {out}"
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        ".gitattributes",
        "README.md",
        "model_index.json",
        "pipeline.py",
        "preview.png",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/pipeline.py",
    }
    assert "*.safetensors filter=lfs" in (out / ".gitattributes").read_text()
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "cc-by-nc-sa-4.0"
    assert (front["library_name"], front["pipeline_tag"]) == (
        "diffusers",
        "unconditional-image-generation",
    )
    assert "](preview.png)" in text
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(text)
    numbers = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert numbers == {"fd": 39.4, "kd": 0.125}
    assert {r.dataset_name for r in card.data.eval_results} == {"digits"}
    assert card.data.model_name == "gen.safetensors"

    network, info = load_model(out)  # read back
    picture = np.asarray(Image.open(io.BytesIO((out / "preview.png").read_bytes())))
    classes = PLAIN["label_dim"]
    images = generate(Sampler.of(info), network, range(6 * classes))
    assert np.array_equal(picture, np.asarray(grid_image(images, classes)))


def test_a_licence_that_the_hub_does_not_know_has_a_name(tmp_path: Path) -> None:
    model = write_model(tmp_path / "gen.safetensors", PLAIN)
    export_model(model, tmp_path / "hub", to="hub", base_licence="mine: all of it")
    front = yaml.safe_load((tmp_path / "hub/README.md").read_text().split("---")[1])
    assert (front["license"], front["license_name"]) == ("other", "mine: all of it")
    assert "model-index" not in front


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = write_model(tmp_path / "gen.safetensors", PLAIN), tmp_path / "hub"
    status, said, _ = call(capsys, "export", model, "--to", "hub", "--out", out)
    assert (status, said.splitlines()[0]) == (0, f"hub folder: {out}")
    status, _, error = call(capsys, "export", model, "--to", "hub", "--out", tmp_path)
    assert (status, "holds more" in error) == (2, True)
    assert call(capsys, "sample", out, "--seeds", "0-3", "--out", tmp_path / "s.png")[0] == 0
