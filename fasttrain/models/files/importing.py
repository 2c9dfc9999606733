"""`fasttrain import`: a published checkpoint becomes a file of named weights that says what it is.

    found = import_model(Path("edm-cifar10-32x32-cond-vp.pkl"), Path("cifar10.safetensors"))
    print(found.text())

All weights are kept, those of augmentation labels too: fine-tuning leaves them out by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fasttrain.models.files.model_file import (
    AUGMENT,
    ModelFile,
    ModelInfo,
    check_fit,
    outline,
    read_model_file,
)
from fasttrain.models.networks.registry import arguments_of
from fasttrain.settings import NetworkSettings
from fasttrain.system.errors import UserError
from fasttrain.system.tensors import write_tensors

__all__ = ["Imported", "import_model"]


@dataclass(frozen=True)
class Imported:
    """What was found, and where it is now."""

    info: ModelInfo
    description: str
    parameters: int
    out: Path

    def text(self) -> str:
        """For people, a line each."""
        arguments = arguments_of(self.info.network)
        kind = arguments.pop("model_type")
        what = "one-step generator" if self.info.task == "finetune" else "diffusion model"
        lines = [
            f"found: {self.description}",
            f"model: {what}, {kind}, {self.parameters:,} parameters",
            "network: " + ", ".join(f"{name}={value}" for name, value in arguments.items()),
        ]
        if self.info.images is not None:
            lines.append(f"images: {self.info.images:,}")
        return "\n".join([*lines, f"weights: {self.out}"])


def import_model(path: Path, out: Path, network: NetworkSettings | None = None) -> Imported:
    """Write the model in a file as safetensors in float32, with what is needed to build its network
    in its metadata: `init=OUT` and `fasttrain sample OUT` take it.

    network: what a plain state dict's weights are of; other files say it themselves.
    Raises UserError when the file is refused, or holds other weights than those of its network.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: a run's model is written by `fasttrain export`")
    if not path.is_file():
        raise UserError(f"no file {path}")
    if out.resolve() == path.resolve():
        raise UserError(f"{out} is the file itself: name another one with --out")
    found = read_model_file(path)
    info = found.info or _stated(path, found, network)
    weights = {name: value.float() for name, value in found.weights.items()}
    kept = found.kept or {}
    origin = {"origin": found.description} | ({} if "source" in kept else found.itself) | kept
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(out, weights, info.metadata() | origin)
    return Imported(info, found.description, _parameters(weights), out)


def _stated(path: Path, found: ModelFile, network: NetworkSettings | None) -> ModelInfo:
    """What a plain state dict is of: a diffusion model's network, as the user says."""
    if network is None:
        raise UserError(
            f"{path} does not say what network its weights are of: give --recipe, the fine-tuning "
            f"recipe that has this network"
        )
    info = ModelInfo(task="pretrain", network=network, sigma=None, name=path.name)
    labels = found.weights.get(AUGMENT)
    if labels is not None and labels.dim() == 2:
        width = {"augment_dim": labels.shape[1]}
        info = replace(info, network=network.model_copy(update=width))
    check_fit(outline(info, path), found.weights, path)
    return info


def _parameters(weights: Mapping[str, Tensor]) -> int:
    """Numbers that training changes."""
    buffers = ("resample_filter", "freqs")
    return sum(w.numel() for name, w in weights.items() if name.split(".")[-1] not in buffers)
