"""Where weights came from, as model files and checkpoints say it: the file that was imported, the
base model and its licence, the data.

    metadata |= origin_of(Path("runs/digits-d2o-f"))
    run.base["origin"] = origin_of_base(settings.init)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from fasttrain import checkpoint

__all__ = ["KEPT", "origin_of", "origin_of_base"]

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
"""What a model file says of where it came from, carried from file to file."""


def origin_of(model: Path, which: str = "latest") -> dict[str, str]:
    """What is known of where a run's, or a file's, weights came from, under the names of `KEPT`."""
    if model.is_dir():
        state = checkpoint.find(model / "checkpoints", which).state
        base = state.get("base") or {}
        found: dict[str, Any] = dict(base.get("origin") or {})
        found["data_sha256"] = (state.get("data") or {}).get("content_sha256")
        found["base_sha256"] = base.get("sha256")
    elif model.suffix == ".safetensors":
        with safe_open(model, "pt") as file:
            found = file.metadata() or {}
    else:
        found = {"source": model.name, "source_sha256": checkpoint.sha256(model)}
    return {name: str(found[name]) for name in KEPT if found.get(name)}


def origin_of_base(init: Path) -> dict[str, str]:
    """What a run keeps of its base model's origin: above all the licence."""
    found = origin_of(init)
    found.pop("base_sha256", None)  # of another one: the run writes its own
    own = {f"base_{name}": found[name] for name in KEPT[:3] if name in found}
    return {name: found[name] for name in KEPT if name.startswith("base_") and name in found} | own
