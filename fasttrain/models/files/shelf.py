"""Models that come with the package: small ones whose data and weights may be passed on.

    file = read_shelf("fashion-mnist")          # a ModelFile, as of any other file
    describe("fashion-mnist").numbers           # {"fd": ..., "evaluations": 1, ...}

Each is a bfloat16 safetensors file in `fasttrain/models/shelf` with a card beside it. A generator
of D2O-F is stored as the weights that trained; `rest` in its metadata names the model that has the
others, and its SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fasttrain.models.files.model_file import AUGMENT, ModelFile, own_file, read_safetensors
from fasttrain.settings.registry import SHELF
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256
from fasttrain.system.tensors import write_tensors

__all__ = ["FOLDER", "ShelfModel", "base_of", "describe", "path_of", "put_on_shelf", "read_shelf"]

FOLDER = Path(__file__).parents[1] / "shelf"

FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CLASSES = {"fashion-mnist": FASHION, "fashion-mnist-edm": FASHION}
"""Names of a model's classes, whose data had numbers for them."""


@dataclass(frozen=True)
class ShelfModel:
    """What the shelf says of a model.

    Attributes:
        about: in a few words.
        numbers: its evaluation, by metric, with the protocol's code and the number of evaluations.
        licence: of weights and data.
        megabytes: of its file.
    """

    name: str
    about: str
    numbers: Mapping[str, Any]
    licence: str
    megabytes: float


def path_of(name: str) -> Path:
    """The file of a model. Raises UserError when the package lacks it."""
    path = FOLDER / f"{name}.safetensors"
    if name not in SHELF or not path.is_file():
        raise UserError(f"no model named {name}: choose one of {', '.join(SHELF)}")
    return path


def describe(name: str) -> ShelfModel:
    """A model's entry, from its file's metadata."""
    path = path_of(name)
    with safe_open(path, "pt") as tensors:
        metadata = tensors.metadata() or {}
    return ShelfModel(
        name=name,
        about=SHELF[name],
        numbers=json.loads(metadata["numbers"]),
        licence=metadata["base_licence"],
        megabytes=path.stat().st_size / 1e6,
    )


def read_shelf(name: str) -> ModelFile:
    """A model with all its weights. Raises UserError when a file is missing or damaged."""
    path = path_of(name)
    metadata, weights = read_safetensors(path)
    if "rest" in metadata:
        other = path_of(metadata["rest"])
        if sha256(other) != metadata["rest_sha256"]:
            raise UserError(f"{other} is damaged: install fasttrain again")
        _, rest = read_safetensors(other)
        rest.pop(AUGMENT, None)
        weights = rest | weights
    model = own_file(path, metadata, weights)
    if model.info is None or name not in CLASSES:
        return model
    return replace(model, info=replace(model.info, classes=CLASSES[name]))


def base_of(path: Path) -> str | None:
    """The model of the shelf that the one in this file was fine-tuned from, if there is one."""
    with safe_open(path, "pt") as tensors:
        return (tensors.metadata() or {}).get("rest")


def put_on_shelf(
    name: str,
    model: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    numbers: Mapping[str, Any],
    rest: str | None = None,
) -> Path:
    """Write a model's file, in bfloat16.

    model: full named weights; of `rest`, a model of the shelf, those that are equal are left out.
    """
    import torch

    weights = {n: w.to(torch.bfloat16) if w.is_floating_point() else w for n, w in model.items()}
    about = {**metadata, "numbers": json.dumps(dict(numbers))}
    if rest is not None:
        other = path_of(rest)
        _, held = read_safetensors(other)
        weights = {n: w for n, w in weights.items() if n not in held or not torch.equal(held[n], w)}
        about |= {"rest": rest, "rest_sha256": sha256(other)}
    path = FOLDER / f"{name}.safetensors"
    FOLDER.mkdir(exist_ok=True)
    write_tensors(path, weights, about)
    return path
