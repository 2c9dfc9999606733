"""From settings and files to networks: build them, load weights into them, say what does not fit.

network = new_network("edm", settings.network)
load_weights(network, Path("runs/digits-edm"))
prepare_network(network, settings, world.device)
network, info = load_model(Path("generator.safetensors"))       # or a run, or its directory
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fasttrain import checkpoint
from fasttrain.class_features import class_features
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.features import build_features
from fasttrain.discriminator.peers import Peers
from fasttrain.distributed import World
from fasttrain.errors import UserError
from fasttrain.model_files import (
    AUGMENT,
    ModelFile,
    ModelInfo,
    check_fit,
    outline,
    precond_of,
    read_model_file,
)
from fasttrain.networks import build_network
from fasttrain.networks.layers import UNetBlock
from fasttrain.saved import BASE, SavedRun, keep_base
from fasttrain.settings import (
    DiscriminatorSettings,
    FinetuneSettings,
    NetworkSettings,
    RunSettings,
)

__all__ = [
    "ModelInfo",
    "activation_dtype",
    "assemble",
    "fit",
    "load_base_model",
    "load_model",
    "load_weights",
    "memory_format",
    "network_of",
    "new_discriminator",
    "new_network",
    "open_model",
    "prepare_network",
    "restore_base",
]


def new_network(
    precond: Literal["edm", "one_step"], settings: NetworkSettings, kernels: str = "auto"
) -> Any:
    """A preconditioned U-Net with fresh weights from torch's global generator.

    Raises UserError when the settings describe no network, such as sizes that cannot be halved.
    """
    try:
        return build_network(precond, **settings.arguments(), kernels=kernels)
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
    for module in network.modules():
        if isinstance(module, UNetBlock):
            module.recompute = settings.recompute_norms
    if settings.compile:
        network.model.compile()


def activation_dtype(
    settings: RunSettings | DiscriminatorSettings, device: torch.device
) -> torch.dtype:
    """What `settings.precision` means on a device."""
    gpu = device.type == "cuda"
    low = gpu if settings.precision == "auto" else settings.precision == "bfloat16"
    return torch.bfloat16 if low else torch.float32


def memory_format(settings: RunSettings, device: torch.device) -> torch.memory_format:
    """What `settings.memory_format` means on a device."""
    gpu = device.type == "cuda"
    last = gpu if settings.memory_format == "auto" else settings.memory_format == "channels_last"
    return torch.channels_last if last else torch.contiguous_format


def open_model(path: Path, which: str = "latest") -> SavedRun | ModelFile:
    """A run directory at a checkpoint (`latest`, `best` or a number of images), or a model file:
    ours, a pickle or training state of EDM's, a plain state dict.

    Raises UserError when it is neither, or cannot be used.
    """
    if path.is_dir():
        return SavedRun.open(path, which)
    if not path.is_file():
        raise UserError(
            f"no model at {path}: it is neither a run directory nor a model file; `fasttrain "
            f"pretrain` makes one"
        )
    return read_model_file(path)


def load_weights(network: nn.Module, source: Path | SavedRun | ModelFile) -> None:
    """Load the weights of a run's average, or of a model file, strictly; without those of
    augmentation labels where the network takes none.

    Raises UserError, naming the first key that is missing, unknown or of another shape.
    """
    source = open_model(source) if isinstance(source, Path) else source
    fit(network, starting_weights(network, source), source.path)


def starting_weights(network: nn.Module, source: SavedRun | ModelFile) -> dict[str, torch.Tensor]:
    """Those of a model's weights that a network begins with, in its own precision."""
    own, weights = network.state_dict(), dict(source.weights)
    if AUGMENT not in own:
        weights.pop(AUGMENT, None)
    return {n: w.to(own[n].dtype) if n in own else w for n, w in weights.items()}


def base_of(step: checkpoint.Step) -> dict[str, Any]:
    """What a checkpoint says of the model that its fine-tuning began with. Raises UserError."""
    base: dict[str, Any] | None = step.state.get("base")
    if not base:
        raise UserError(f"{step.path / 'state.json'} does not name the run's base model")
    return base


def restore_base(run: Path, step: checkpoint.Step, init: Path, network: nn.Module) -> None:
    """Make a base model of a network that is missing or damaged anew from `init`, if that is still
    the same."""
    expected = base_of(step)["sha256"]
    path = run / BASE
    if path.is_file() and checkpoint.sha256(path) == expected:
        return
    try:
        found = keep_base(run, starting_weights(network, open_model(init)))
    except UserError as error:
        found = str(error)
    if found != expected:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{path}, the model that this run began with, is missing or damaged, and {init} is "
            f"not it either: put the file back (SHA-256 {expected[:12]}...)"
        )
    warnings.warn(f"{path} was missing or damaged: made anew from {init}", stacklevel=2)


def fit(network: nn.Module, weights: Mapping[str, torch.Tensor], source: object) -> None:
    """Copy named weights into a network; all of them must fit."""
    check_fit(network.state_dict(), weights, source)
    network.load_state_dict(dict(weights))


def assemble(settings: RunSettings, weights: Mapping[str, torch.Tensor], world: World) -> Any:
    """The settings' network with these full weights of rank 0's, on every process; rank 0's shares
    them where they are on its device already. In eval mode, computing in float32, as images that
    are looked at are made."""
    on_device = {name: value.to(world.device) for name, value in weights.items()}
    precond = precond_of(settings.task)  # type: ignore[attr-defined]
    with torch.device("meta"):
        network = new_network(precond, settings.network, settings.kernels)
    network.load_state_dict(world.share(on_device), assign=True)
    network.memory_format = memory_format(settings, world.device)
    return network.eval().requires_grad_(False)


def load_model(source: Path | SavedRun | ModelFile, which: str = "latest") -> tuple[Any, ModelInfo]:
    """The network of a run or of a model file, in eval mode, and what it is.

    which: of a run directory's checkpoints, `latest`, `best` or a number of images.
    """
    source = open_model(source, which) if isinstance(source, Path) else source
    if isinstance(source, SavedRun):
        info = ModelInfo.of(source)
        return network_of(precond_of(info.task), source, source.weights), info
    if source.info is None:
        raise UserError(
            f"{source.path} does not say what network its weights are of: name the run directory, "
            f"or a file that `fasttrain export` or `fasttrain import` has written"
        )
    with torch.device("meta"):
        network = new_network(precond_of(source.info.task), source.info.network)
    network.load_state_dict({n: w.float() for n, w in source.weights.items()}, assign=True)
    return network.eval().requires_grad_(False), source.info


def load_base_model(saved: SavedRun, precond: Literal["edm", "one_step"]) -> Any:
    """The network that a fine-tuning run began with, in eval mode: its own copy, whatever `init`
    holds by now."""
    return network_of(precond, saved, saved.base)


def network_of(
    precond: Literal["edm", "one_step"], saved: SavedRun, weights: Mapping[str, torch.Tensor]
) -> Any:
    """A run's network with these full weights, in eval mode. Settings that may be anyone's take
    memory only when the weights fit. Raises UserError when they do not."""
    expected = outline(ModelInfo.of(saved), saved.path)
    check_fit(expected, weights, saved.path)
    with torch.device("meta"):
        network = new_network(precond, saved.settings.network, saved.settings.kernels)
    own = {name: value.to(expected[name].dtype) for name, value in weights.items()}
    network.load_state_dict(own, assign=True)
    return network.eval().requires_grad_(False)


def new_discriminator(
    settings: FinetuneSettings, device: torch.device, *, fresh: bool, peers: Peers | None = None
) -> ProjectedDiscriminator:
    """The projected discriminator that the settings describe.

    fresh: start the class embeddings as the settings say; otherwise a checkpoint is loaded next.
    peers: processes that share batch norm groups with this one.
    """
    wanted = settings.discriminator
    label_dim = settings.network.label_dim
    features = [
        build_features(
            backbone.name, backbone.resolution, weights=backbone.weights, seed=settings.seed
        )
        for backbone in wanted.backbones
    ]
    embedding = None
    if fresh and label_dim and wanted.class_embedding == "class_means":
        embedding = class_features(settings, device)
    discriminator = ProjectedDiscriminator(
        features,
        label_dim=label_dim,
        norm_group=wanted.norm_group,
        seed=settings.seed,
        cout=wanted.channels,
        resolutions=wanted.resolutions,
        width=wanted.width,
        class_embedding=embedding,
        kernels=settings.kernels,
        peers=peers,
    ).to(device)
    discriminator.precision = activation_dtype(wanted, device)
    return discriminator
