"""Base class, value types and choices shared by the parts of the settings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from fasttrain.settings.registry import SHELF

__all__ = [
    "AUGMENT_DIM",
    "Augmentation",
    "Distillation",
    "FewStep",
    "FreezeLevel",
    "GradientThrough",
    "ScoreForm",
    "absolute_or_name",
]


_CHAIN = re.compile(r"[A-Za-z0-9+.]+(::[A-Za-z0-9+.]+)+://")
"""Of fsspec's file systems, such as simplecache::s3://."""


def _absolute(path: Path) -> Path:
    """Absolute path, so that a run's files are found from any working directory."""
    try:
        return Path(os.path.abspath(path.expanduser()))
    except RuntimeError:  # nobody has that name
        raise ValueError(f"{path}: no user {path.parts[0][1:]}: write the path in full") from None


def _joined(path: object) -> object:
    """A list of paths as WebDataset writes it in one text."""
    if isinstance(path, list | tuple) and path:
        return "::".join(map(str, path))
    return str(path) if isinstance(path, Path) else path


def _data_path(path: str) -> str:
    parts = [path] if _CHAIN.match(path) else path.split("::")
    return "::".join(part if "://" in part else str(_absolute(Path(part))) for part in parts)


def _branch(text: str) -> str:
    run, at, which = text.rpartition("@")
    if not at or not run or not (which in ("latest", "best") or which.isdecimal()):
        raise ValueError("write it as RUN@IMAGES, RUN@latest or RUN@best")
    return f"{_absolute(Path(run))}@{which}"


UserPath = Annotated[Path, AfterValidator(_absolute)]

Branch = Annotated[str, AfterValidator(_branch)]
"""A run directory and one of its checkpoints."""


def absolute_or_name(path: Path) -> Path:
    """A model's name stays a name, unless something lies there."""
    return path if str(path) in SHELF and not path.exists() else _absolute(path)


InitPath = Annotated[Path, AfterValidator(absolute_or_name)]

DataPath = Annotated[
    str,
    BeforeValidator(_joined),
    AfterValidator(_data_path),
]

Beta = Annotated[float, Field(ge=0, lt=1)]

MAX_BLOCKS = 1000
"""Upper bound for the blocks of a network."""

Factor = Annotated[int, Field(gt=0, le=64)]

Tap = Annotated[int, Field(gt=0, le=1_000_000)]

Seed = Annotated[int, Field(ge=0, lt=2**63)]

ZeroStage = Literal[0, 1, 2, 3]

Augmentation = Literal["flip", "color", "translation", "cutout"]

FreezeLevel = Literal["none", 1, 2, 3, "all-but-1", "all-but-norms"]

GradientThrough = Literal["both", "last"]

Distillation = Literal["pd", "cd", "ctm", "rcd"]

ScoreForm = Literal["dmd", "sid", "ratio"]

AUGMENT_DIM = 9
"""Augmentation labels of an image in pre-training."""


class Settings(BaseModel):
    """Frozen, keyword-only, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), serialize_by_alias=True
    )


class FewStep(NamedTuple):
    """How a generator makes images: at a noise level, or at a second one after it."""

    sigma: float
    sigma_mid: float | None
    gradient_through: GradientThrough
