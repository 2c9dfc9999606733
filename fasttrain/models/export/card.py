"""The model card of an exported model: its description, recipe, known quality, and the licence of
its base weights. Nothing in it is guessed.

    text = model_card(info, metadata, "diffusers", "pipeline")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fasttrain.models.files.model_file import ModelInfo
from fasttrain.system.files import one_line

__all__ = ["model_card"]

UNKNOWN_LICENCE = "unknown: ask the source of the base model"
USE = {
    "safetensors": """    fasttrain sample {file} --seeds 0-63

The file describes the network of its weights; `init: {file}` fine-tunes from it.""",
    "diffusers": """    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
    images = pipeline(seeds=[0, 1, 2]{labels}).images

`pipeline.py` is self-contained: read it before you trust it.""",
    "onnx": """    session = onnxruntime.InferenceSession("{file}")
    images = session.run(None, {{"latents": z{feed}}})[0]      # z: float32 {shape}, N(0, 1)

Images are about [-1, 1].{range}""",
}


def model_card(
    info: ModelInfo,
    metadata: Mapping[str, str],
    to: str,
    file: str,
    numbers: str | None = None,
) -> str:
    """Markdown, with the front matter that model hubs read.

    file: the exported file's name; numbers: Markdown of the model's evaluation, if there is one.
    """
    licence = one_line(metadata.get("base_licence", UNKNOWN_LICENCE))
    steps = "two-step" if info.sigma_mid is not None else "one-step"
    kind = f"{steps} generator" if info.training.generator else info.training.network
    parts = [
        "---\nlicense: other\n"
        f"license_name: {json.dumps(licence)}\n"
        "tags: [image-generation, one-step-generation, fasttrain]\n"
        + ("library_name: diffusers\n" if to == "diffusers" else "")
        + "---",
        f"# {one_line(info.name)}",
        f"A {kind} for images of {_size(info)}, made with fasttrain.",
        "## Use\n\n" + _use(info, to, file),
        "## Recipe\n\n" + _table(_recipe(info, metadata)),
        "## Numbers\n\n" + (numbers or "None: it has not been evaluated."),
        f"## Licence\n\nOf the base model's weights, which these derive from: {licence}.",
    ]
    return "\n\n".join(parts) + "\n"


def _size(info: ModelInfo) -> str:
    network = info.network
    colours = "grey" if network.img_channels == 1 else f"{network.img_channels} channels"
    classes = f"{network.label_dim} classes" if network.label_dim else "no classes"
    size = f"{network.img_resolution}x{network.img_resolution}, {colours}, {classes}"
    return size if info.latents is None else f"{size}, latents that an autoencoder decodes"


def _use(info: ModelInfo, to: str, file: str) -> str:
    network, size = info.network, info.network.img_resolution
    return USE[to].format(
        file=f"{file} --vae FOLDER" if info.latents is not None and to == "safetensors" else file,
        labels=", class_labels=0" if network.label_dim else "",
        range=f" Labels are int64, 0 to {network.label_dim - 1}: others are not detected, and give "
        f"images of no class."
        if network.label_dim
        else "",
        feed=', "labels": numbers' if network.label_dim else "",
        shape=f"[N, {network.img_channels}, {size}, {size}]",
    )


def _recipe(info: ModelInfo, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Known facts; without folders and hosts of the machine of the run."""
    rows: dict[str, Any] = {
        "network": f"{info.network.model_type}, {info.network.model_channels} channels",
        "images seen": "not recorded" if info.images is None else f"{info.images:,}",
    }
    if info.sigma is not None:
        middle = "" if info.sigma_mid is None else f", then {info.sigma_mid:g}"
        rows["noise level"] = f"{info.sigma:g}{middle}"
    settings = info.settings
    if settings is None:
        rows["recipe"] = "not recorded in the model's file"
    else:
        rows |= info.training.facts(settings)
        rows["data"] = ", ".join(_last_part(each.path) for each in settings.data.sets())
    names = {
        "data_sha256": "data, SHA-256 of its content",
        "base_sha256": "base model, SHA-256",
        "base_origin": "base model, imported from",
        "base_source": "base model, imported file",
        "base_source_sha256": "base model, imported file, SHA-256",
        "origin": "imported from",
        "source": "imported file",
        "source_sha256": "imported file, SHA-256",
    }
    return rows | {title: metadata[key] for key, title in names.items() if key in metadata}


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {one_line(value)} |" for key, value in rows.items())]
    )


def _last_part(path: str) -> str:
    """The name at the end of a folder's path or of a URL, whose user, host and query may be
    secret."""
    if "://" not in path:
        return path.rstrip("/").rpartition("/")[2]
    folders = path.rpartition("://")[2].split("?")[0].split("#")[0].partition("/")[2]
    return folders.rstrip("/").rpartition("/")[2] or "a server's root folder"
