"""Messages for mistakes in settings, with "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel


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
        known = _fields_at(schema, item["loc"][:-1])
        return f"unknown key {name}{did_you_mean(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{name} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name}: {message}" if name else message
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
    return list(model.model_fields)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]}?" if close else ""
