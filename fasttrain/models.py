"""From settings and files to networks: build them, load weights into them, say what does not fit.

network = new_network("edm", settings.network)
load_weights(network, Path("runs/digits-edm"))
prepare_network(network, settings, world.device)
network, settings = load_run(Path("runs/digits-d2o-f"))
network, info = load_model(Path("generator.safetensors"))       # or a run directory
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from fasttrain import checkpoint
from fasttrain.class_features import class_features
from fasttrain.config import load_run_settings
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.features import build_features
from fasttrain.discriminator.peers import Peers
from fasttrain.distributed import World
from fasttrain.errors import UserError
from fasttrain.model_files import ModelInfo, check_fit, outline, precond_of, read_model_file
from fasttrain.networks import build_network
from fasttrain.networks.layers import UNetBlock
from fasttrain.settings import (
    DiscriminatorSettings,
    FinetuneSettings,
    NetworkSettings,
    PretrainSettings,
    RunSettings,
)

__all__ = [
    "ModelInfo",
    "activation_dtype",
    "assemble",
    "base_weights",
    "fit",
    "keep_base",
    "load_model",
    "load_run",
    "load_weights",
    "memory_format",
    "network_of",
    "new_discriminator",
    "new_network",
    "prepare_network",
    "restore_base",
    "weights_of",
]


BASE = "base.safetensors"
"""In the directory of a fine-tuning run."""
AUGMENT = "model.map_augment.weight"
"""What a published diffusion model has for the labels of its augmentation."""


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


def load_weights(network: nn.Module, source: Path) -> None:
    """Load the weights of a run's average, or of a model file, strictly; without those of
    augmentation labels where the network takes none.

    Raises UserError, naming the first key that is missing, unknown or of another shape.
    """
    fit(network, starting_weights(network, source), source)


def starting_weights(network: nn.Module, source: Path) -> dict[str, torch.Tensor]:
    """Those of a model's weights that a network begins with, in its own precision."""
    own, weights = network.state_dict(), weights_of(source)
    if AUGMENT not in own:
        weights.pop(AUGMENT, None)
    return {n: w.to(own[n].dtype) if n in own else w for n, w in weights.items()}


def weights_of(source: Path, which: str = "latest") -> dict[str, torch.Tensor]:
    """Full named weights: of a run directory's EMA at a checkpoint, or of a model file: ours, a
    pickle or training state of EDM's, a plain state dict."""
    if source.is_dir():
        step = checkpoint.find(source / "checkpoints", which)
        name = "generator" if (step.path / "generator.safetensors").is_file() else "network"
        trained = {
            key.removeprefix("module/"): value
            for key, value in step.tensors(name).items()
            if key.startswith("module/")
        }
        weights = trained | step.tensors("ema")
        if step.state.get("base"):
            weights = frozen_weights(source, step, set(trained)) | weights
        return weights
    if not source.is_file():
        raise UserError(
            f"no model at {source}: pre-train one with `fasttrain pretrain` or set init=RUN"
        )
    return read_model_file(source).weights


def frozen_weights(run: Path, step: checkpoint.Step, trained: set[str]) -> dict[str, torch.Tensor]:
    """What of the run's base model its checkpoint does not hold, as it was used in training."""
    dtype = getattr(torch, base_of(step).get("frozen", "float32"))
    base = base_weights(run, step)
    return {n: w.to(dtype).to(w.dtype) for n, w in base.items() if n not in trained}


def base_weights(run: Path, step: checkpoint.Step) -> dict[str, torch.Tensor]:
    """The model that a run's fine-tuning began with. Raises UserError when it is another now."""
    path = run / BASE
    if not path.is_file() or checkpoint.sha256(path) != base_of(step)["sha256"]:
        raise UserError(
            f"{path} is missing or damaged: continue the run, which makes it anew from its "
            f"`init` as long as that is unchanged, or put the file back"
        )
    return read_tensors(path)


def base_of(step: checkpoint.Step) -> dict[str, Any]:
    """What a checkpoint says of the model that its fine-tuning began with. Raises UserError."""
    base: dict[str, Any] | None = step.state.get("base")
    if not base:
        raise UserError(f"{step.path / 'state.json'} does not name the run's base model")
    return base


def keep_base(run: Path, weights: Mapping[str, torch.Tensor]) -> str:
    """Write the model that fine-tuning begins with into the run directory; its SHA-256. The same
    weights give the same bytes."""
    checkpoint.write_tensors(run / BASE, weights)
    return checkpoint.sha256(run / BASE)


def restore_base(run: Path, step: checkpoint.Step, init: Path, network: nn.Module) -> None:
    """Make a base model of a network that is missing or damaged anew from `init`, if that is still
    the same."""
    expected = base_of(step)["sha256"]
    path = run / BASE
    if path.is_file() and checkpoint.sha256(path) == expected:
        return
    try:
        found = keep_base(run, starting_weights(network, init))
    except UserError as error:
        found = str(error)
    if found != expected:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{path}, the model that this run began with, is missing or damaged, and {init} is "
            f"not it either: put the file back (SHA-256 {expected[:12]}...)"
        )
    warnings.warn(f"{path} was missing or damaged: made anew from {init}", stacklevel=2)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Raises UserError when the file cannot be read."""
    try:
        return checkpoint.load_tensors(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None


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


def load_run(run: Path, which: str = "latest") -> tuple[Any, PretrainSettings | FinetuneSettings]:
    """The averaged network of a run, in eval mode, with its settings.

    which: `latest`, `best` or a number of images.
    """
    settings = load_run_settings(run)
    return network_of(precond_of(settings.task), settings, weights_of(run, which), run), settings


def network_of(
    precond: Literal["edm", "one_step"],
    settings: RunSettings,
    weights: Mapping[str, torch.Tensor],
    source: Path,
) -> Any:
    """The settings' network with these full weights, in eval mode. Settings that may be anyone's
    take memory only when the weights fit. Raises UserError when they do not."""
    task = settings.task  # type: ignore[attr-defined]
    info = ModelInfo(task=task, network=settings.network, sigma=None, name=source.name)
    expected = outline(info, source)
    held = {n: w for n, w in weights.items() if n != AUGMENT or n in expected}
    check_fit(expected, held, source)
    with torch.device("meta"):
        network = new_network(precond, settings.network, settings.kernels)
    own = {name: value.to(expected[name].dtype) for name, value in held.items()}
    network.load_state_dict(own, assign=True)
    return network.eval().requires_grad_(False)


def load_model(path: Path, which: str = "latest") -> tuple[Any, ModelInfo]:
    """The network of a run directory or of a model file, in eval mode, and what it is.

    which: of a run's checkpoints, `latest`, `best` or a number of images.
    """
    if path.is_dir():
        load_run_settings(path)  # is it a run at all?
        step = checkpoint.find(path / "checkpoints", which)
        network, settings = load_run(path, str(step.images))
        info = ModelInfo(
            task=settings.task,
            network=settings.network,
            sigma=None,
            name=path.resolve().name,
            images=step.images,
            settings=settings,
        )
        if isinstance(settings, FinetuneSettings):
            info = replace(info, sigma=settings.sigma, sigma_mid=settings.sigma_mid)
        return network, info
    if not path.is_file():
        raise UserError(f"no model at {path}: it is neither a run directory nor a model file")
    found = read_model_file(path)
    if found.info is None:
        raise UserError(
            f"{path} does not say what network its weights are of: name the run directory, or a "
            f"file that `fasttrain export` or `fasttrain import` has written"
        )
    with torch.device("meta"):
        network = new_network(precond_of(found.info.task), found.info.network)
    network.load_state_dict({n: w.float() for n, w in found.weights.items()}, assign=True)
    return network.eval().requires_grad_(False), found.info


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
