"""Latents from images to an exported one-step generator: encode, pretrain, finetune, sample,
evaluate, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from fasttrain_data import convert
from tests.latents import VAE, squares
from tests.runs.calling import call

pytestmark = pytest.mark.slow

RECIPE = """
network:
  model_type: DiT
  img_resolution: 8
  img_channels: 4
  label_dim: 2
  prediction: {kind: flow}
  options: {patch_size: 2, hidden_size: 32, depth: 2, num_heads: 2}
precision: float32
batch: 16
report_every: 16
sample: {count: 4}
checkpoint: {every: 32}
"""
PRETRAIN = RECIPE + "task: pretrain\nimages: 64\noptimizer: {rate: 1.0e-3}\nema: {half_life: 50}\n"
FINETUNE = (
    RECIPE
    + """
task: finetune
images: 32
ema: {half_life: 50}
evaluate: {samples: 8, components: null}
generator: {rate: 1.0e-4}
discriminator:
  class_embedding: random
  norm_group: 8
  width: 16
  precision: float32
  optimizer: {rate: 1.0e-4}
"""
)
OWN = [
    "discriminator.backbones=[{name: self}]",
    "discriminator.resolutions=[4, 4]",
    "r1={gamma: 1.0e-3, interval: 1, inputs: features}",
]
PIXELS = [
    "discriminator.backbones=[{name: lite0, resolution: 32}]",
    "discriminator.resolutions=[16, 8]",
    "discriminator.channels=8",
    "r1={gamma: 1.0e-3, interval: 1}",
]


def test_from_images_to_an_exported_generator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, latents = tmp_path / "images", tmp_path / "latents"
    convert(squares(tmp_path / "squares", 32, 16), images)
    status, text, error = call(capsys, "encode", images, latents, "--vae", VAE, "--flips")
    assert status == 0, error
    assert "32 latents of 8x8x4 in 2 classes" in text
    data = [f"data.path={latents}", f"latents={{vae: {VAE}, pictures: {images}}}"]
    for name, text in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        (tmp_path / f"{name}.yaml").write_text(text)
    first = tmp_path / "diffusion"
    status, _, error = call(capsys, "pretrain", tmp_path / "pretrain.yaml", f"run={first}", *data)
    assert status == 0, error
    grid = Image.open(next((first / "samples").glob("*.png")))
    assert grid.mode == "RGB"  # decoded

    pixels = tmp_path / "pixels"
    for run, judge in ((pixels, PIXELS), (tmp_path / "own", OWN)):
        said = ["finetune", tmp_path / "finetune.yaml", f"run={run}", f"init={first}"]
        status, _, error = call(capsys, *said, *data, *judge)
        assert status == 0, error

    out = tmp_path / "generator.safetensors"
    status, _, error = call(capsys, "export", tmp_path / "own", "--out", out)
    assert status == 0, error
    with safe_open(out, "pt") as file:
        assert '"low": -1.0' in file.metadata()["latents"]

    status, _, error = call(capsys, "sample", out, "--out", tmp_path / "a.png", "--seeds", "0")
    assert status == 2
    assert "--vae PATH" in error
    one = tmp_path / "one"
    for model, more, to in ((out, ["--vae", VAE], one / "a"), (tmp_path / "own", [], one / "b")):
        said = ["sample", model, "--out", f"{to}/", "--seeds", "0", *more]
        status, _, error = call(capsys, *said)
        assert status == 0, error
    drawn = [np.asarray(Image.open(one / n / "000000.png")).astype(int) for n in ("a", "b")]
    assert drawn[0].shape == (16, 16, 3)
    assert np.abs(drawn[0] - drawn[1]).max() <= 1

    said = ["evaluate", out, "--vae", VAE, "--data", images, "--samples", "8"]
    status, text, error = call(capsys, *said, "--metrics", "kd", "--out", tmp_path / "e.json")
    assert status == 0, error
    assert "kd" in text
