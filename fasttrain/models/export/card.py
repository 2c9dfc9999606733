"""The model card of an exported model: its description, recipe, known quality, and the licence of
its base weights. Nothing in it is guessed.

    text = model_card(info, metadata, "diffusers", "pipeline")

The front matter is that of the Hugging Face hub (huggingface.co/docs/hub/model-cards): a licence
that it knows by its identifier, any other as `license_name`; metrics as `model-index`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.networks.registry import arguments_of
from fasttrain.system.files import one_line

__all__ = ["PICTURE", "Quality", "model_card"]

UNKNOWN_LICENCE = "unknown: ask the source of the base model"
LICENCES = {"apache-2.0", "mit", "openrail", "cc0-1.0", "bsd-3-clause", "gpl-3.0", "unlicense"}
LICENCES |= {f"cc-by-{kind}" for kind in ("4.0", "sa-4.0", "nc-4.0", "nc-sa-4.0", "nd-4.0")}
"""Identifiers that the hub knows."""
PICTURE = "preview.png"
TASK = "unconditional-image-generation"
"""The hub's name of what a generator does."""
HUB = """    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        "USER/NAME", custom_pipeline="USER/NAME", trust_remote_code=True
    )
    images = pipeline(seeds=[0, 1, 2]{labels}).images

`USER/NAME` is this repository, or a folder with its files. `pipeline.py` is self-contained: read it
before you trust it. `fasttrain sample FOLDER` and every other command take the folder, too."""
USE = {
    "hub": HUB,
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


@dataclass(frozen=True)
class Quality:
    """What is known of a model's quality.

    Attributes:
        text: Markdown of its evaluation with the protocol.
        metrics: the model's own numbers, as a hub's metadata has them: name, type, value.
        data: name of the images that they compare with.
    """

    text: str
    metrics: Sequence[Mapping[str, Any]] = ()
    data: str = ""


def model_card(
    info: ModelInfo,
    metadata: Mapping[str, str],
    to: str,
    file: str,
    quality: Quality | None = None,
    *,
    picture: bool = False,
) -> str:
    """Markdown, with the front matter that model hubs read.

    file: the exported file's name; picture: whether PICTURE lies beside the card.
    """
    licence = _licence(info, metadata)
    kind = f"{_steps(info)} generator" if info.training.generator else info.training.network
    front = _front(info, metadata, to, quality)
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{text}---",
        f"# {one_line(info.name)}",
        f"A {kind} for images of {_size(info)}, made with fasttrain.",
        *([f"![Images of the first seeds]({PICTURE})"] if picture else []),
        "## Use\n\n" + _use(info, to, file),
        "## Recipe\n\n" + _table(_recipe(info, metadata)),
        "## Numbers\n\n" + (quality.text if quality else "None: it has not been evaluated."),
        "## Licence\n\n"
        + (
            f"Of the base model's weights, which these derive from: {licence}."
            if licence is not None
            else "Trained from scratch: no base model's licence applies."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front(
    info: ModelInfo, metadata: Mapping[str, str], to: str, quality: Quality | None
) -> dict[str, Any]:
    licence = _licence(info, metadata)
    known = (licence or "").lower().replace(" ", "-")
    front: dict[str, Any] = {}
    if known in LICENCES:
        front["license"] = known
    elif licence is not None:
        front |= {"license": "other", "license_name": licence}
    how = [f"{_steps(info)}-generation"] if info.training.generator else []
    front["tags"] = ["image-generation", *how, "fasttrain"]
    if to in ("diffusers", "hub"):
        front["library_name"] = "diffusers"
    if to == "hub":
        front["pipeline_tag"] = TASK
    if to == "hub" and quality and quality.metrics:
        result = {
            "task": {"type": TASK},
            "dataset": {"name": one_line(quality.data), "type": "image"},
            "metrics": [dict(metric) for metric in quality.metrics],
        }
        front["model-index"] = [{"name": one_line(info.name), "results": [result]}]
    return front


def _licence(info: ModelInfo, metadata: Mapping[str, str]) -> str | None:
    """Of the base model's weights; None for a run that began with none."""
    scratch = info.settings is not None and getattr(info.settings, "init", None) is None
    if scratch and "base_licence" not in metadata:
        return None
    return one_line(metadata.get("base_licence", UNKNOWN_LICENCE))


def _steps(info: ModelInfo) -> str:
    return "two-step" if info.sigma_mid is not None else "one-step"


def _size(info: ModelInfo) -> str:
    network = info.network
    colours = "grey" if network.img_channels == 1 else f"{network.img_channels} channels"
    classes = f"{network.label_dim} classes" if network.label_dim else "no classes"
    size = f"{network.img_resolution}x{network.img_resolution}, {colours}, {classes}"
    return size if info.latents is None else f"{size}, latents that an autoencoder decodes"


def _use(info: ModelInfo, to: str, file: str) -> str:
    network, size = info.network, info.network.img_resolution
    return USE[to].format(
        file=f"{file} --vae PATH" if info.latents is not None and to == "safetensors" else file,
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
    arguments = arguments_of(info.network)
    width = f", {arguments['model_channels']} channels" if "model_channels" in arguments else ""
    rows: dict[str, Any] = {
        "network": f"{info.network.model_type}{width}",
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
