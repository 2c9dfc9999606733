"""The exported ONNX file in onnxruntime, on batches that it was not made with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fasttrain.models.export import export_model, onnx_file
from fasttrain.models.load import load_model
from fasttrain.sampling.draws import sample_latents
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.errors import UserError
from tests.small_models import ADM, NCSNPP, write_model

SMALL: dict[str, Any] = {"channel_mult": (1, 1)}
CASES = {
    "classes": (ADM | SMALL, {}),
    "two steps": (NCSNPP | SMALL, {"sigma_mid": "0.8"}),
    "of SiD's kind": (
        NCSNPP | SMALL | {"prediction": {"kind": "edm", "eps": 0.0, "sigma_data": 1.0}},
        {"sigma": "2.5"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_makes_the_same_images(case: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network, metadata = CASES[case]
    model = write_model(tmp_path / "model.safetensors", network, **metadata)
    out = tmp_path / "out" / "generator.onnx"
    said = export_model(model, out, to="onnx")
    assert said.startswith(f"onnx: {out} (onnxruntime differs from PyTorch by ")
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "generator.onnx",
        "generator.onnx.md",
    ]
    own, info = load_model(model)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    inputs = {entry.name: entry for entry in session.get_inputs()}
    assert inputs.keys() == ({"latents", "labels"} if info.network.label_dim else {"latents"})
    assert inputs["latents"].shape == ["batch", 3, 8, 8]
    assert session.get_modelmeta().custom_metadata_map["task"] == "finetune"
    for seeds in ([5], [0, 1, 2, 3], list(range(7))):
        feed = {"latents": sample_latents(torch.tensor(seeds), (3, 8, 8)).numpy()}
        if info.network.label_dim:
            feed["labels"] = np.array(seeds) % 10
        expected = generate(Sampler.of(info), own, seeds).numpy()
        assert np.abs(session.run(["images"], feed)[0] - expected).max() < 1e-4
        assert expected.std() > 0.05


def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the minute that an export takes: the check alone."""

    class Program:
        model = SimpleNamespace(metadata_props={})

        def save(self, path: str, external_data: bool) -> None:
            Path(path).write_bytes(b"onnx")
            if external_data:
                Path(f"{path}.data").write_bytes(b"weights")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    monkeypatch.setattr(onnx_file, "_difference", lambda *_: 2e-4)
    model = write_model(tmp_path / "model.safetensors", ADM)
    with pytest.raises(UserError, match=r"differs from PyTorch by 2\.0e-04"):
        export_model(model, tmp_path / "x.onnx", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    monkeypatch.setattr(onnx_file, "_difference", lambda *_: float("nan"))
    monkeypatch.setattr(onnx_file, "LARGEST", 0)  # in two files
    (tmp_path / "x.onnx").write_bytes(b"an earlier one")
    with pytest.raises(UserError, match="nothing was written"):
        export_model(model, tmp_path / "x.onnx", to="onnx")
    assert (tmp_path / "x.onnx").read_bytes() == b"an earlier one"
    monkeypatch.setattr(onnx_file, "_difference", lambda *_: 0.0)
    export_model(model, tmp_path / "x.onnx", to="onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.safetensors",
        "x.onnx",
        "x.onnx.data",
        "x.onnx.md",
    ]
    assert (tmp_path / "x.onnx").read_bytes() == b"onnx"
    assert "0 to 9: others are not detected" in (tmp_path / "x.onnx.md").read_text()


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name)
    )
    model = write_model(tmp_path / "model.safetensors", ADM)
    with pytest.raises(UserError, match=r"pip install 'fasttrain\[onnx\]'"):
        export_model(model, tmp_path / "x.onnx", to="onnx")
