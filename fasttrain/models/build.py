"""From settings to networks, where and how they are trained.

network = new_network("edm", settings.network)
prepare_network(network, settings, world.device)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from fasttrain.models.adapters import merged
from fasttrain.models.networks import build_network
from fasttrain.models.networks.registry import arguments_of
from fasttrain.settings import DiscriminatorSettings, NetworkSettings, RunSettings
from fasttrain.settings.trainings import training_of
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World

__all__ = ["activation_dtype", "assemble", "memory_format", "new_network", "prepare_network"]


def new_network(precond: Literal["edm", "one_step"], settings: NetworkSettings) -> Any:
    """A preconditioned network with fresh weights from torch's global generator.

    Raises UserError when the settings describe no network: sizes that cannot be halved, a setting
    that this kind of network does not take.
    """
    try:
        return build_network(precond, **arguments_of(settings))
    except ValueError as error:
        raise UserError(f"network: {error}") from None


def prepare_network(network: Any, settings: RunSettings, device: torch.device) -> None:
    """Bring a network to where and how the settings have it trained.

    In bfloat16 the activations and the frozen weights are (so `apply_freezing` comes first); what
    trains stays float32 and is cast at use. In channels_last the frozen weights lie as the
    convolutions want them.
    """
    if next(network.parameters()).device != device:
        network.to(device)
    network.activation_dtype = dtype = activation_dtype(settings, device)
    network.memory_format = layout = memory_format(settings, device)
    for parameter in network.parameters():
        if not parameter.requires_grad:
            # 1x1 weights lie the same in both layouts, and DeepSpeed takes plain strides only.
            spatial = parameter.dim() == 4 and parameter.shape[-1] > 1
            format_ = layout if spatial else torch.preserve_format
            parameter.data = parameter.data.to(dtype, memory_format=format_)
    for block in network.blocks():
        if hasattr(block, "recompute"):
            block.recompute = settings.recompute_norms
        elif settings.recompute_norms:
            kind = settings.network.model_type
            raise UserError(f"recompute_norms: a {kind} has no norms to recompute; remove it")
    if settings.compile:
        network.model.compile()


def activation_dtype(
    settings: RunSettings | DiscriminatorSettings, device: torch.device
) -> torch.dtype:
    """What `settings.precision` means on a device; on a CPU, `auto` that no measurement has decided
    (`fasttrain.models.precision`) is float32."""
    gpu = device.type == "cuda"
    low = gpu if settings.precision == "auto" else settings.precision == "bfloat16"
    return torch.bfloat16 if low else torch.float32


def memory_format(settings: RunSettings, device: torch.device) -> torch.memory_format:
    """What `settings.memory_format` means on a device."""
    fast = device.type == "cuda" or settings.precision == "bfloat16"
    last = fast if settings.memory_format == "auto" else settings.memory_format == "channels_last"
    return torch.channels_last if last else torch.contiguous_format


def assemble(settings: RunSettings, weights: Mapping[str, torch.Tensor], world: World) -> Any:
    """The settings' network with these full weights of rank 0's, on every process; rank 0's shares
    them where they are on its device already. In eval mode, computing in float32, as images that
    are looked at are made; adapters are merged into the weights."""
    full = weights if world.is_main else {}  # elsewhere only the constants are there
    with world.agreed():
        on_device = merged({name: value.to(world.device) for name, value in full.items()})
        with torch.device("meta"):
            network = new_network(training_of(settings).precond, settings.network)
    network.load_state_dict(world.share(on_device), assign=True)
    network.memory_format = memory_format(settings, world.device)
    return network.eval().requires_grad_(False)
