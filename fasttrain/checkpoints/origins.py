"""Origin of weights, as recorded in model files and checkpoints: the imported file, the base model
and its licence, the data.

metadata = info.metadata() | source.origin
run.base["origin"] = origin_as_base(source.origin)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["KEPT", "origin_as_base", "origin_in", "origin_of_state"]

KEPT = (
    "origin",
    "source",
    "source_sha256",
    "data_sha256",
    "base_sha256",
    "base_licence",
    "base_origin",
    "base_source",
    "base_source_sha256",
)
"""Entries about the origin of a model file, copied from file to file."""


def origin_in(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Entries of the metadata under the names of `KEPT`."""
    return {name: str(metadata[name]) for name in KEPT if metadata.get(name)}


def origin_of_state(state: Mapping[str, Any]) -> dict[str, str]:
    """Origin of a run's weights, from its `state.json`."""
    base, data = state.get("base") or {}, state.get("data") or {}
    about = {"data_sha256": data.get("content_sha256"), "base_sha256": base.get("sha256")}
    return origin_in({**(base.get("origin") or {}), **about})


def origin_as_base(origin: Mapping[str, str]) -> dict[str, str]:
    """Entries of its base model's origin that a run keeps, above all the licence; not
    `base_sha256`, which is that of an earlier base: the run writes its own."""
    kept = {name: value for name, value in origin.items() if name != "base_sha256"}
    own = {f"base_{name}": kept[name] for name in KEPT[:3] if name in kept}
    return {name: kept[name] for name in KEPT if name.startswith("base_") and name in kept} | own
