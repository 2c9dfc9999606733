"""What a model is, wherever it came from, and how a file says it.

info = described(path, metadata)            # of a safetensors file's metadata
write_tensors(out, weights, info.metadata())
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.models.files.families.foreign import Foreign, Latents
from fasttrain.models.latents import scaling
from fasttrain.settings import NetworkSettings, RunSettings
from fasttrain.settings.registry import NETWORKS
from fasttrain.settings.trainings import TRAININGS, Training, training_of
from fasttrain.system.errors import UserError
from fasttrain_data.index import LatentInfo
from fasttrain_data.pickle_data import shown

__all__ = ["ModelInfo", "class_names", "described", "info_of"]

MAX_DESCRIPTION, MAX_NAME, MAX_NAMES = 10_000, 200, 4_000_000
"""Characters of a description, of a class's name, and of all names."""


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model, from a run or a file."""

    task: str
    """Of `TRAININGS`; `pretrain`: a diffusion model; `finetune`: a one-step generator."""
    network: NetworkSettings
    sigma: float | None
    """Noise level of a one-step generator's single step; None for a diffusion model."""
    name: str
    """The run directory's or the file's, for people."""
    images: int | None = None
    """Images of its training, where known."""
    settings: RunSettings | None = None
    """Those of the run; None for a file."""
    sigma_mid: float | None = None
    """Noise level of a two-step generator's second step."""
    classes: tuple[str, ...] = ()
    """Names of its classes, in the order of their labels, where they are known."""
    latents: Latents | None = None
    """How a decoder takes what the network makes, where that is latents."""

    @property
    def training(self) -> Training:
        """The row of the training that it is of, or is as if of."""
        return TRAININGS[self.task]

    @property
    def kernels(self) -> Literal["auto", "triton", "reference"]:
        """Implementation of the run's operations; `auto` for a file."""
        return "auto" if self.settings is None else self.settings.kernels

    @classmethod
    def of(cls, saved: SavedRun) -> ModelInfo:
        """Description of a run's averaged model."""
        settings = saved.settings
        few_step = settings.few_step
        return cls(
            task=training_of(settings).task,
            network=settings.network,
            sigma=few_step.sigma if few_step else None,
            name=saved.path.resolve().name,
            images=saved.images,
            settings=settings,
            sigma_mid=few_step.sigma_mid if few_step else None,
            classes=class_names(
                (saved.state.get("data") or {}).get("classes"), settings.network.label_dim
            ),
            latents=_latents_of(saved),
        )

    def metadata(self) -> dict[str, str]:
        """What a model file says of its model; `_described` reads it."""
        about = {"format": "pt", "task": self.task, "network": self.network.model_dump_json()}
        values = {"images": self.images, "sigma": self.sigma, "sigma_mid": self.sigma_mid}
        if self.classes:
            about["classes"] = json.dumps(self.classes)
        if self.latents is not None:
            about["latents"] = json.dumps(asdict(self.latents))
        return about | {name: str(x) for name, x in values.items() if x is not None}


def described(path: Path, metadata: Mapping[str, str]) -> ModelInfo | None:
    """What `fasttrain export` and `fasttrain import` write into a file."""
    if "network" not in metadata:
        return None
    try:
        if len(metadata["network"]) > MAX_DESCRIPTION:
            raise ValueError(f"it takes more than {MAX_DESCRIPTION:,} characters to say what it is")
        network = NetworkSettings.model_validate_json(metadata["network"])
        task = metadata.get("task", "none")
        sigma, images = metadata.get("sigma"), metadata.get("images")
        sigma_mid = metadata.get("sigma_mid")
        if task not in TRAININGS:
            raise ValueError(f"its task is {shown(task)}")
        if TRAININGS[task].generator and not sigma:
            raise ValueError("it does not say the noise level of its step")
        if sigma and not 0 < float(sigma) < math.inf:
            raise ValueError("the noise level of its step is none")
        if sigma_mid and not 0 < float(sigma_mid) < float(sigma or 0):
            raise ValueError("the noise level of its second step is not below that of its first")
        return ModelInfo(
            task=task,
            network=network,
            sigma=float(sigma) if sigma else None,
            name=path.name,
            images=int(images) if images else None,
            sigma_mid=float(sigma_mid) if sigma_mid else None,
            classes=class_names(_listed(metadata.get("classes", "[]")), network.label_dim),
            latents=Latents.parsed(metadata["latents"]) if "latents" in metadata else None,
        )
    except ValidationError as error:
        raise UserError(f"{path} describes no network: {_first(error)}") from None
    except ValueError as error:
        raise UserError(f"{path} describes no model: {error}") from None


def _latents_of(saved: SavedRun) -> Latents | None:
    """How the latents of a run's data became what its network sees."""
    wanted = saved.settings.latents
    if wanted is None:
        return None
    try:
        info = LatentInfo.model_validate((saved.state.get("data") or {}).get("latents"))
    except ValidationError:
        raise UserError(f"{saved.path} does not say how its latents were made") from None
    return scaling(info, saved.settings.network.img_channels, wanted.scale, wanted.bias)


def class_names(names: Any, classes: int) -> tuple[str, ...]:
    """Names from a file, which may be anyone's; none where they are not one short text a class."""
    if not isinstance(names, list | tuple) or len(names) != classes:
        return ()
    plain = all(isinstance(n, str) and 0 < len(n) <= MAX_NAME and n.isprintable() for n in names)
    return tuple(names) if plain else ()


def _listed(text: str) -> Any:
    try:
        return json.loads(text) if len(text) <= MAX_NAMES else []
    except (ValueError, RecursionError):
        return []


def info_of(foreign: Foreign, path: Path) -> ModelInfo:
    """What a foreign model is, its settings validated."""
    values = foreign.network
    kind = values.get("model_type")
    if type(kind) is not str or kind not in NETWORKS:
        raise UserError(
            f"{path} describes no network: model_type: {shown(str(kind))} is not one of "
            f"{', '.join(NETWORKS)}"
        )
    try:
        network = NetworkSettings.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path} describes no network: {_first(error)}") from None
    sigma = foreign.sigma
    if sigma is not None and not 0 < sigma < math.inf:
        raise UserError(f"sigma={sigma:g}: the noise level of a step is positive and finite")
    task = "pretrain" if sigma is None else "finetune"
    return ModelInfo(task, network, sigma, path.name, latents=foreign.latents)


def _first(error: ValidationError) -> str:
    """The first mistake, in one line."""
    item = error.errors(include_input=False, include_url=False)[0]
    name = shown(".".join(map(str, item["loc"])))
    if item["type"] == "extra_forbidden":
        return f"{name} is no argument of one"
    return f"{name}: {shown(item['msg'])}" if name else shown(item["msg"])
