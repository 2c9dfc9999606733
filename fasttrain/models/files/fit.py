"""Whether named weights are those of a network.

check_fit(outline(info, path), weights, path)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttrain.models.files.model_info import ModelInfo
from fasttrain.models.networks import build_network
from fasttrain.models.networks.registry import arguments_of
from fasttrain.system.errors import UserError
from fasttrain_data.pickle_data import shown

__all__ = ["AUGMENT", "FILTER", "check_fit", "outline"]

AUGMENT = "model.map_augment.weight"
"""What a published diffusion model has for the labels of its augmentation."""
FILTER = ".resample_filter"


def outline(info: ModelInfo, path: Path) -> dict[str, Tensor]:
    """The names and shapes of the weights that a described network has; of filters, which do not
    train, the values."""
    network = info.network
    try:
        with torch.device("meta"):
            built = build_network(info.training.precond, **arguments_of(network))
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
