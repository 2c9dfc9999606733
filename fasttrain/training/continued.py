"""The diffusion model that pre-training goes on from, when its recipe names one: any model that
`fasttrain import` reads, or a run, of the same network, with the same or with other classes.

    base = load_diffusion(settings, network, stream.manifest)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttrain.checkpoints.origins import origin_as_base
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.data.locate import storage_of
from fasttrain.models.build import new_network
from fasttrain.models.classes import with_classes
from fasttrain.models.files.model_file import AUGMENT, ModelFile, ModelInfo
from fasttrain.models.load import fit, open_model, starting_weights
from fasttrain.models.networks.network import ClassRows
from fasttrain.settings import PretrainSettings
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256
from fasttrain.training.base_model import check_same_latents, check_same_network
from fasttrain_data.class_names import read_names
from fasttrain_data.errors import DataError
from fasttrain_data.index import Index

__all__ = ["diffusion_weights", "load_diffusion"]


def load_diffusion(
    settings: PretrainSettings, network: Any, data: Index
) -> tuple[dict[str, Any], str]:
    """Load the model that `init` names into a network with fresh weights. Returns what
    `state.json` says of it, and a line about its class embedding.

    Raises UserError when it is not a diffusion model, or one of another network or other images.
    """
    assert settings.init is not None
    init = open_model(settings.init)
    weights, line = diffusion_weights(settings, init, network, data)
    fit(network, weights, init.path)
    file = init.step.path / "ema.safetensors" if isinstance(init, SavedRun) else init.path
    digest = "" if file.is_dir() else sha256(file)
    origin = origin_as_base(init.origin)
    return {"sha256": digest} | ({"origin": origin} if origin else {}), line


def diffusion_weights(
    settings: PretrainSettings, init: SavedRun | ModelFile, network: Any, data: Index
) -> tuple[dict[str, Tensor], str]:
    """The weights with which a network begins as another model, and a line about its class
    embedding; they may not fit. Raises UserError as `load_diffusion`."""
    info = ModelInfo.of(init) if isinstance(init, SavedRun) else init.info
    _check(settings, init, info)
    weights = starting_weights(network, init)
    own = network.state_dict()
    if AUGMENT in own:  # a model without augmentation labels has them from now on
        weights.setdefault(AUGMENT, own[AUGMENT])
    theirs = _names(settings, init, info)
    dropped: list[ClassRows] = []
    if info is not None and info.network.label_dim:
        with torch.device("meta"):
            dropped = new_network("edm", info.network).model.class_tables()
    classes = [entry.name for entry in data.classes] if network.label_dim else []
    return with_classes(network, weights, classes, theirs, dropped)


def _check(settings: PretrainSettings, init: SavedRun | ModelFile, info: ModelInfo | None) -> None:
    check_same_network(settings, init)
    check_same_latents(settings, init)
    if info is None:
        return
    if info.training.generator:
        raise UserError(
            f"{init.path} is a one-step generator: `fasttrain pretrain` goes on with a diffusion "
            f"model; take `fasttrain finetune` for it"
        )
    ours, theirs = settings.network, info.network
    if ours.img_channels != theirs.img_channels:
        raise UserError(
            f"{init.path} is of images with {theirs.img_channels} channels, the recipe's have "
            f"{ours.img_channels}: convert the images with --channels {theirs.img_channels} and "
            f"set network.img_channels={theirs.img_channels}"
        )
    if ours.img_resolution != theirs.img_resolution:
        raise UserError(
            f"{init.path} is of images of {theirs.img_resolution} pixels a side, the recipe's have "
            f"{ours.img_resolution}: convert the images with --resolution "
            f"{theirs.img_resolution} and set network.img_resolution={theirs.img_resolution}"
        )


def _names(
    settings: PretrainSettings, init: SavedRun | ModelFile, info: ModelInfo | None
) -> list[str] | None:
    """Names of the model's classes: what the settings say, the model itself, or a run's data; None:
    unknown."""
    count = info.network.label_dim if info is not None else None
    if settings.init_classes is not None:
        path = settings.init_classes
        if not path.exists():
            raise UserError(f"init_classes: no file {path}")
        try:
            names = read_names(str(path))
        except DataError as error:
            raise UserError(f"init_classes: {error}") from None
        if count is not None and len(names) != count:
            raise UserError(
                f"init_classes: {path} has {len(names):,} names, {init.path} has {count:,} classes"
            )
        return names
    if info is not None and info.classes:
        return list(info.classes)
    if not isinstance(init, SavedRun) or not count:
        return None
    if not all(Path(part.path).is_dir() for part in init.settings.data.sets()):  # no URLs
        return None
    try:
        index = storage_of(init.settings.data, init.settings.network).index()
    except (DataError, UserError):
        return None
    names = [entry.name for entry in index.classes]
    return names if len(names) == count else None
