"""`fasttrain export MODEL --to safetensors|diffusers|onnx|hub`: full weights, merged of the base
model and what trained on top of it, in a form that others read, with a model card beside.

    export_model(Path("runs/digits-d2o-f"), Path("out.safetensors"))      # what it wrote, in words
    export_model(Path("runs/digits-d2o-f"), Path("pipeline"), to="diffusers")

`hub` is the diffusers folder with what the pages of the Hugging Face hub show: metrics in the
card's metadata, and a picture.

The weights are float32 under the published names. `init=FILE` and every command that takes a model
read a safetensors file back, bit by bit; and the one inside of a diffusers folder, too,
`unet/diffusion_pytorch_model.safetensors`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.models.export.card import PICTURE, Quality, model_card
from fasttrain.models.export.onnx_file import write_onnx
from fasttrain.models.export.pipeline import LARGE_FILES, write_pipeline
from fasttrain.models.files.model_file import AUGMENT, ModelFile, ModelInfo
from fasttrain.models.load import load_model, open_model
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe, write_atomic
from fasttrain.system.tensors import write_tensors

__all__ = ["FORMATS", "Format", "export_model"]

Format = Literal["safetensors", "diffusers", "onnx", "hub"]
FORMATS: tuple[Format, ...] = get_args(Format)
FOLDERS = ("diffusers", "hub")
"""Formats that are folders."""
DEFAULT = {
    "safetensors": "generator.safetensors",
    "onnx": "generator.onnx",
    "diffusers": "pipeline",
    "hub": "hub",
}


def export_model(
    model: Path | SavedRun | ModelFile,
    out: Path | None = None,
    *,
    to: Format = "safetensors",
    base_licence: str | None = None,
    vae: Path | None = None,
    quality: Quality | None = None,
    picture: Callable[[Any, ModelInfo], bytes] | None = None,
) -> str:
    """Write a run's average, or a model file, and return a line that says what and where.

    vae: the autoencoder of a model of latents; default: the run's.
    quality: what is known of the model's quality, for the card.
    picture: (network, info) -> the PNG of a hub's page (`fasttrain.sampling.preview`).
    Raises UserError for mistakes in the input, and when ONNX does not compute what torch does.
    """
    source = open_model(model) if isinstance(model, Path) else model
    network, info = load_model(source, vae=vae)
    if to != "safetensors" and not info.training.generator:
        raise UserError(
            f"{info.name} is a diffusion model, and --to {to} makes images in one step: fine-tune "
            f"it first, or take --to safetensors"
        )
    if to == "diffusers" and info.latents is not None:
        raise UserError(
            f"--to diffusers: {info.name} makes latents, which the exported pipeline does not "
            f"decode; take --to onnx or safetensors"
        )
    plain = network.plain()
    if to != "safetensors" and plain is None:
        raise UserError(
            f"--to {to}: {info.name} has another network ({info.network.model_type}) or prediction "
            f"({info.network.prediction.kind}) than those of EDM's that run without fasttrain; "
            f"take --to safetensors"
        )
    weights = network.state_dict()
    if to != "safetensors" and weights.pop(AUGMENT, None) is not None:  # nothing is told there
        info = replace(info, network=info.network.model_copy(update={"augment_dim": 0}))
    metadata = info.metadata() | source.origin
    if base_licence is not None:
        metadata["base_licence"] = base_licence
    out = out or Path(DEFAULT[to])
    if to not in FOLDERS and out.suffix.lower() == ".md":
        raise UserError(f"{out} is named as a model card is: name the file to write with --out")
    out = out.absolute() if not out.name else out  # "."
    probe(out if to not in FOLDERS else out.with_name(f"{out.name}.new"))
    shown = picture(network, info) if to == "hub" and picture is not None else None
    card = model_card(info, metadata, to, out.name, quality, picture=shown is not None)
    if to in FOLDERS:
        extra = {} if to == "diffusers" else {".gitattributes": LARGE_FILES}
        if shown is not None:
            extra[PICTURE] = shown
        write_pipeline(out, weights, info, metadata, card, plain, extra)
        if to == "diffusers":
            return f"pipeline: {out}"
        return f"hub folder: {out}\nto publish it: hf upload USER/NAME {shlex.quote(str(out))}"
    if to == "onnx":
        difference = write_onnx(out, weights, info, metadata, plain, network.decoder)
        said = f"onnx: {out} (onnxruntime differs from PyTorch by {difference:.1e} at most)"
    else:
        write_tensors(out, weights, metadata)
        said = f"weights: {out}"
    write_atomic(card_path(out), card)
    return f"{said}\nmodel card: {card_path(out)}"


def card_path(out: Path) -> Path:
    """Beside a single file, and of it alone; a README.md could be someone else's."""
    return out.with_name(f"{out.name}.md")
