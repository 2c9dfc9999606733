"""A model in one file: what `fasttrain export` and `import` write, EDM's pickles and training
states, and plain state dicts.

    found = read_model_file(Path("edm-imagenet-64x64-cond-adm.pkl"))
    found.info.network, found.weights

Our own files and EDM's say what network their weights are of, and hold those of that network and no
others. EDM's are parsed, never run: `fasttrain.models.files.edm_pickle`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fasttrain.checkpoints.origins import origin_in
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.models.files.edm_pickle import Checkpoint, is_pickle, is_zip, read_checkpoint
from fasttrain.models.files.pickle_data import Refused, shown
from fasttrain.models.networks import build_network
from fasttrain.models.networks.registry import arguments_of, network_class
from fasttrain.settings import FinetuneSettings, NetworkSettings, PretrainSettings
from fasttrain.settings.registry import NETWORKS
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256

__all__ = [
    "AUGMENT",
    "ModelFile",
    "ModelInfo",
    "check_fit",
    "outline",
    "precond_of",
    "read_model_file",
]

Task = Literal["pretrain", "finetune"]

TASKS: dict[str, Task] = {"EDMPrecond": "pretrain", "D2OPrecond": "finetune"}
"""Classes of EDM's and of the published D2O code; both take the same arguments."""
ONE_STEP_SIGMA = 80.0
AUGMENT = "model.map_augment.weight"
"""What a published diffusion model has for the labels of its augmentation."""
CONSTANTS = {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5}
"""The only ones that our preconditioners know."""
EDM_NETWORK = "DhariwalUNet"
"""What a file of EDM's holds that names no network."""
FILTER = ".resample_filter"
MAX_LENGTH = 100
"""Of a list in such a description."""
MAX_DESCRIPTION = 10_000
"""Characters."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, wherever it came from."""

    task: Task
    """`pretrain`: a diffusion model; `finetune`: a one-step generator."""
    network: NetworkSettings
    sigma: float | None
    """Noise level of a one-step generator's single step; None for a diffusion model."""
    name: str
    """The run directory's or the file's, for people."""
    images: int | None = None
    """Images that it has been trained for, where that is known."""
    settings: PretrainSettings | FinetuneSettings | None = None
    """Those of the run; None for a file."""
    sigma_mid: float | None = None
    """Noise level of a two-step generator's second step."""

    @property
    def kernels(self) -> Literal["auto", "triton", "reference"]:
        """How the run's operations run; `auto` for a file."""
        return "auto" if self.settings is None else self.settings.kernels

    @classmethod
    def of(cls, saved: SavedRun) -> ModelInfo:
        """What a run's averaged model is."""
        settings = saved.settings
        levels: tuple[float | None, float | None] = (None, None)
        if isinstance(settings, FinetuneSettings):
            levels = (settings.sigma, settings.sigma_mid)
        return cls(
            task=settings.task,
            network=settings.network,
            sigma=levels[0],
            name=saved.path.resolve().name,
            images=saved.images,
            settings=settings,
            sigma_mid=levels[1],
        )

    def metadata(self) -> dict[str, str]:
        """What a model file says of its model; `_described` reads it."""
        about = {"format": "pt", "task": self.task, "network": self.network.model_dump_json()}
        values = {"images": self.images, "sigma": self.sigma, "sigma_mid": self.sigma_mid}
        return about | {name: str(x) for name, x in values.items() if x is not None}


@dataclass(frozen=True)
class ModelFile:
    """What a file holds: full named weights, and what they are of where it says so."""

    path: Path
    weights: dict[str, Tensor]
    info: ModelInfo | None
    description: str
    """What the file is, for people."""
    kept: dict[str, str] | None = None
    """What a safetensors file says of where it came from, under the names of `origins.KEPT`."""

    @property
    def origin(self) -> dict[str, str]:
        """Where the weights came from: what the file says, or the file itself."""
        return self.itself if self.kept is None else self.kept

    @property
    def itself(self) -> dict[str, str]:
        """This file as the source of another one's weights."""
        return {"source": self.path.name, "source_sha256": sha256(self.path)}


def read_model_file(path: Path) -> ModelFile:
    """Raises UserError when the file cannot be read, or holds other weights than it says."""
    with path.open("rb") as file:
        start = file.read(16)
    ours = path.suffix == ".safetensors" or start[5:9] == b"\0\0\0{"  # a length, then JSON
    if not ours and (is_zip(start) or is_pickle(start)):
        return _read_pickled(path)
    try:
        with safe_open(path, "pt") as tensors:
            metadata = tensors.metadata() or {}
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a safetensors file: {error}; nor is it a pickle or a file of torch.save"
        ) from None
    info = _described(path, metadata)
    if info is not None:
        check_fit(outline(info, path), weights, path)
    kept = origin_in(metadata)
    return ModelFile(path, weights, info, kept.get("origin", "weights in safetensors"), kept)


def _read_pickled(path: Path) -> ModelFile:
    try:
        found = read_checkpoint(path)
        if found.class_name is None:
            weights = {name: stored.tensor() for name, stored in found.tensors.items()}
            return ModelFile(path, weights, None, "a plain state dict")
        info = _edm_info(path, found)
        expected = outline(info, path)
        check_fit(expected, found.tensors, path)  # before any of it is copied
        weights = {name: found.tensors[name].tensor().float() for name in expected}
        check_fit(expected, weights, path)
    except Refused as error:
        raise UserError(f"{path} is refused: {error}") from None
    except (MemoryError, RuntimeError):  # torch says it so
        raise UserError(f"{path} is refused: there is no memory for what it holds") from None
    about = f"{found.class_name}, `{found.part}` of a checkpoint of EDM's"
    return ModelFile(path, weights, info, about)


def _described(path: Path, metadata: Mapping[str, str]) -> ModelInfo | None:
    """What `fasttrain export` and `fasttrain import` write into a file."""
    if "network" not in metadata:
        return None
    try:
        if len(metadata["network"]) > MAX_DESCRIPTION:
            raise ValueError(f"it takes more than {MAX_DESCRIPTION:,} characters to say what it is")
        network = NetworkSettings.model_validate_json(metadata["network"])
        task, sigma, images = (metadata.get(key) for key in ("task", "sigma", "images"))
        sigma_mid = metadata.get("sigma_mid")
        if task not in TASKS.values():
            raise ValueError(f"its task is {shown(str(task))}")
        if task == "finetune" and not sigma:
            raise ValueError("it does not say the noise level of its step")
        if sigma and not 0 < float(sigma) < math.inf:
            raise ValueError("the noise level of its step is none")
        if sigma_mid and not 0 < float(sigma_mid) < float(sigma or 0):
            raise ValueError("the noise level of its second step is not below that of its first")
        return ModelInfo(
            task=task,  # type: ignore[arg-type]
            network=network,
            sigma=float(sigma) if sigma else None,
            name=path.name,
            images=int(images) if images else None,
            sigma_mid=float(sigma_mid) if sigma_mid else None,
        )
    except ValidationError as error:
        raise UserError(f"{path} describes no network: {_first(error)}") from None
    except ValueError as error:
        raise UserError(f"{path} describes no model: {error}") from None


def _edm_info(path: Path, found: Checkpoint) -> ModelInfo:
    """What EDM's class and its arguments come to."""
    task = TASKS.get(found.class_name or "")
    if task is None:
        raise UserError(
            f"{path} holds a network of the class {shown(str(found.class_name))}: take one with "
            f"EDM's own preconditioning, {' or '.join(TASKS)} (edm-*.pkl, not baseline-*.pkl)"
        )
    arguments = {"model_type": EDM_NETWORK, **found.arguments}
    arguments.pop("use_fp16", None)  # how it computed; its weights are float32
    for name, value in CONSTANTS.items():
        given = arguments.pop(name, value)
        if type(given) not in (int, float) or given != value:
            raise UserError(f"{path} was made with another {name} than {value}")
    kind = arguments["model_type"]
    defaults: dict[str, Any] = {}  # EDM's: a field of the settings has one of its own
    if type(kind) is str and kind in NETWORKS:
        own = network_class(kind).defaults()
        defaults = {name: own[name] for name in NetworkSettings.model_fields if name in own}
    for values in (arguments, *arguments.values()):  # pydantic makes an error of each bad one
        if isinstance(values, list | tuple | dict | set) and len(values) > MAX_LENGTH:
            raise UserError(f"{path} describes no network: it has more than {MAX_LENGTH} values")
    try:
        network = NetworkSettings.model_validate(defaults | arguments)
    except ValidationError as error:
        raise UserError(f"{path} describes no network: {_first(error)}") from None
    sigma = ONE_STEP_SIGMA if task == "finetune" else None
    return ModelInfo(task=task, network=network, sigma=sigma, name=path.name)


def _first(error: ValidationError) -> str:
    """What is wrong first, in one line."""
    item = error.errors(include_input=False, include_url=False)[0]
    name = shown(".".join(map(str, item["loc"])))
    if item["type"] == "extra_forbidden":
        return f"{name} is no argument of one"
    return f"{name}: {shown(item['msg'])}" if name else shown(item["msg"])


def precond_of(task: Task) -> Literal["edm", "one_step"]:
    """The preconditioning of a task's network."""
    return "edm" if task == "pretrain" else "one_step"


def outline(info: ModelInfo, path: Path) -> dict[str, Tensor]:
    """The names and shapes of the weights that a described network has; of filters, which do not
    train, the values."""
    network = info.network
    try:
        with torch.device("meta"):
            built = build_network(precond_of(info.task), **arguments_of(network))
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        why = shown((str(error).splitlines() or [""])[0])
        raise UserError(f"{path} describes no network: {why}") from None
    line = torch.tensor(network.resample_filter, dtype=torch.float32)
    taps = (torch.outer(line, line) / line.sum() ** 2)[None, None]
    return {n: taps if n.endswith(FILTER) else w for n, w in built.state_dict().items()}


def check_fit(own: Mapping[str, Any], weights: Mapping[str, Any], source: object) -> None:
    """Raises UserError, naming the first key that is missing, unknown or of another shape or kind.

    own: a network's state dict, or its outline. A filter must be that of the network's settings,
    whose taps are what computes.
    """
    for name, value in own.items():
        if name not in weights:
            raise UserError(f"{source} does not fit the network: it has no {name}")
        if weights[name].shape != value.shape:
            raise UserError(
                f"{source} does not fit the network: {name} is {tuple(weights[name].shape)} there "
                f"and {tuple(value.shape)} here; is `network` set as it was pre-trained?"
            )
        if weights[name].dtype.is_floating_point != value.dtype.is_floating_point:
            raise UserError(
                f"{source} does not fit the network: {name} is {weights[name].dtype} there"
            )
        if name.endswith(FILTER) and isinstance(weights[name], Tensor) and not value.is_meta:
            found, wanted = weights[name].cpu().float(), value.cpu().float()
            if not torch.allclose(found, wanted, rtol=0.01, atol=0):  # bfloat16 rounds by less
                raise UserError(
                    f"{source} does not fit the network: {name} is not that of the setting "
                    f"network.resample_filter"
                )
    for name in weights:
        if name not in own:
            raise UserError(f"{source} does not fit the network: the network has no {shown(name)}")
