"""From settings and files to networks: build them, load weights, and name what does not fit.

network = new_network("edm", settings.network)
load_weights(network, Path("runs/digits-edm"))
prepare_network(network, settings, world.device)
network, info = load_model(Path("generator.safetensors"))       # or a run, or its directory
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.models.adapters import merged
from fasttrain.models.build import new_network
from fasttrain.models.files.exported import is_exported
from fasttrain.models.files.families.diffusers_folder import is_diffusers
from fasttrain.models.files.model_file import (
    AUGMENT,
    ModelFile,
    ModelInfo,
    check_fit,
    outline,
    read_model_file,
)
from fasttrain.models.files.shelf import read_shelf
from fasttrain.models.latents import Decoder
from fasttrain.settings import NetworkSettings
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.registry import SHELF
from fasttrain.system.errors import UserError

__all__ = [
    "fit",
    "load_base_model",
    "load_model",
    "load_weights",
    "network_of",
    "network_of_model",
    "open_model",
]


def open_model(path: Path, which: str = "latest") -> SavedRun | ModelFile:
    """A run directory at a checkpoint (`latest`, `best` or a number of images), or a model file:
    ours, a pickle or training state of EDM's, a plain state dict; or a model of the shelf by name.

    Raises UserError when it is neither, or unusable.
    """
    if path.is_dir() and not (is_exported(path) or is_diffusers(path)):
        return SavedRun.open(path, which)
    if which != "latest" and (path.exists() or str(path) in SHELF):
        raise UserError(f"--checkpoint {which}: {path} is a model file, not a run: leave it out")
    if path.is_dir():
        return read_model_file(path)
    if not path.is_file() and str(path) in SHELF:
        return read_shelf(str(path))
    if not path.is_file():
        raise UserError(
            f"no model at {path}: it is neither a run directory nor a model file (`fasttrain "
            f"pretrain` writes one), nor one of `fasttrain models`"
        )
    return read_model_file(path)


def load_weights(network: nn.Module, source: Path | SavedRun | ModelFile) -> None:
    """Load the weights of a run's average, or of a model file, strictly; without those of
    augmentation labels if the network has no such labels.

    Raises UserError, naming the first key that is missing, unknown or of another shape.
    """
    source = open_model(source) if isinstance(source, Path) else source
    fit(network, starting_weights(network, source), source.path)


def starting_weights(network: nn.Module, source: SavedRun | ModelFile) -> dict[str, torch.Tensor]:
    """The initial weights of a network from a model, in the model's precision."""
    own, weights = network.state_dict(), merged(source.weights)
    if AUGMENT not in own:
        weights.pop(AUGMENT, None)
    return {n: w.to(own[n].dtype) if n in own else w for n, w in weights.items()}


def fit(network: nn.Module, weights: Mapping[str, torch.Tensor], source: object) -> None:
    """Copy named weights into a network; all of them must fit."""
    check_fit(network.state_dict(), weights, source)
    network.load_state_dict(dict(weights))


def load_model(
    source: Path | SavedRun | ModelFile, which: str = "latest", vae: Path | None = None
) -> tuple[Any, ModelInfo]:
    """The network of a run or of a model file, in eval mode, with its description.

    which: checkpoint of a run directory: `latest`, `best` or a number of images.
    vae: the autoencoder of a network of latents; default: the run's.
    """
    source = open_model(source, which) if isinstance(source, Path) else source
    if isinstance(source, SavedRun):
        info = ModelInfo.of(source)
        network = network_of(info.training.precond, source, merged(source.weights))
        if vae is not None:
            network.decoder = decoder_of(info, vae)
        return network, info
    if source.info is None:
        raise UserError(
            f"{source.path} does not describe the network of its weights: name the run directory, "
            f"or a file of `fasttrain export` or `fasttrain import`"
        )
    with torch.device("meta"):
        network = new_network(source.info.training.precond, source.info.network)
    network.load_state_dict({n: w.float() for n, w in source.weights.items()}, assign=True)
    network.decoder = decoder_of(source.info, vae)
    return network.eval().requires_grad_(False), source.info


def decoder_of(info: ModelInfo, vae: Path | None = None) -> Decoder | None:
    """What makes images of a model's latents, with the autoencoder that the user names, else the
    run's; it is read at its first use. None for a model of images."""
    if info.latents is None:
        if vae is not None:
            raise UserError(f"--vae {vae}: {info.name} makes images, not latents")
        return None
    settings = None if info.settings is None else info.settings.latents
    return Decoder(info.latents, vae or (None if settings is None else settings.vae))


def network_of_model(path: Path) -> NetworkSettings:
    """The settings of a model's network. Raises UserError when the model does not say them."""
    if (path / "config.yaml").is_file():
        return load_run_settings(path).network
    model = open_model(path)
    if isinstance(model, SavedRun) or model.info is None:
        raise UserError(f"{path} does not say what network it is of: the recipe needs `network`")
    return model.info.network


def load_base_model(saved: SavedRun, precond: Literal["edm", "one_step"]) -> Any:
    """The network that a fine-tuning run began with, in eval mode, from the run's own copy: `init`
    may have changed since."""
    return network_of(precond, saved, saved.base)


def network_of(
    precond: Literal["edm", "one_step"], saved: SavedRun, weights: Mapping[str, torch.Tensor]
) -> Any:
    """A run's network with these full weights, in eval mode. Untrusted settings allocate memory
    only if the weights fit. Raises UserError when they do not."""
    info = ModelInfo.of(saved)
    expected = outline(info, saved.path)
    check_fit(expected, weights, saved.path)
    with torch.device("meta"):
        network = new_network(precond, saved.settings.network)
    own = {name: value.to(expected[name].dtype) for name, value in weights.items()}
    network.load_state_dict(own, assign=True)
    network.decoder = decoder_of(info)
    return network.eval().requires_grad_(False)
