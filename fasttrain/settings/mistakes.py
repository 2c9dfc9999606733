"""Messages for mistakes in settings, with "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from fasttrain.settings.former import former

OTHER_NAMES = {
    "batch_size": "batch",
    "bf16": "precision",
    "bs": "batch",
    "checkpoint_every": "checkpoint.every",
    "data_dir": "data.path",
    "dataset": "data.path",
    "dtype": "precision",
    "duration": "images",
    "ema_decay": "ema.half_life",
    "epochs": "images",
    "fp16": "precision",
    "gamma": "r1.gamma",
    "iterations": "images",
    "learning_rate": "rate",
    "lr": "rate",
    "max_steps": "images",
    "mixed_precision": "precision",
    "num_workers": "data.workers",
    "out": "run",
    "outdir": "run",
    "output": "run",
    "output_dir": "run",
    "resolution": "network.img_resolution",
    "steps": "images",
    "train_batch_size": "batch",
}
"""Names of settings in other trainers, and ours."""


def causes(errors: list[Any]) -> list[Any]:
    """Errors without those about a list's length that only follow from a mistake inside the
    list."""
    places = [error["loc"] for error in errors]

    def follows(error: Any) -> bool:
        here = error["loc"]
        inner = any(len(p) > len(here) and p[: len(here)] == here for p in places)
        return inner and error["type"] in ("too_short", "too_long")

    return [error for error in errors if not follows(error)]


def explain(item: Any, schema: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        if once := former(name):
            return f"{name} is not a setting any more: {once.why}"
        known = _fields_at(schema, item["loc"][:-1])
        key = str(item["loc"][-1])
        elsewhere = _elsewhere(schema, key)
        return f"unknown key {name}{elsewhere or did_you_mean(key, known)}"
    if item["type"] == "missing":
        return f"{name} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name}: {message}" if name else message
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"{name}: it is a group of settings, {name}.KEY=VALUE, not {item['input']!r}"
    message = message.partition(" for <class 'pathlib.")[0]
    return f"{name}: {message[0].lower()}{message[1:]}, not {item['input']!r}"


def _fields_at(schema: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the fields of the settings at a location of `schema`."""
    model: Any = schema
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        model = inner[0] if inner else annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _elsewhere(schema: type[BaseModel], key: str) -> str:
    """The settings that have a key's name at another place, or that other trainers call so."""
    names = list(_all_fields(schema))
    wanted = OTHER_NAMES.get(key.lower().replace("-", "_"), key)
    same = [n for n in names if n == wanted or n.rpartition(".")[2] == wanted]
    return f": did you mean {' or '.join(same[:3])}?" if same else ""


def _all_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        yield prefix + (field.alias or name)
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for part in inner:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _all_fields(part, f"{prefix}{name}.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]}?" if close else ""
