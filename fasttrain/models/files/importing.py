"""`fasttrain import`: converts a published checkpoint to a self-describing file of named weights.

    imported = import_model(Path("edm-cifar10-32x32-cond-vp.pkl"), Path("cifar10.safetensors"))
    print(imported.text())

All weights are kept, including those of augmentation labels, which fine-tuning drops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from fasttrain.models.files.families.diffusers_folder import is_diffusers
from fasttrain.models.files.families.options import Options
from fasttrain.models.files.model_file import (
    AUGMENT,
    ModelFile,
    ModelInfo,
    check_fit,
    outline,
    read_model_file,
)
from fasttrain.models.networks.prediction import Prediction
from fasttrain.models.networks.registry import arguments_of
from fasttrain.settings import NetworkSettings
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe, write_atomic
from fasttrain.system.tensors import write_tensors

__all__ = ["Imported", "import_model"]


@dataclass(frozen=True)
class Imported:
    """Description of an imported model and its new file."""

    info: ModelInfo
    description: str
    parameters: int
    out: Path
    unsaid: bool = False
    """Whether the file might as well be of a one-step generator."""

    def text(self) -> str:
        """Text for people, a line for each fact."""
        arguments = arguments_of(self.info.network)
        kind = arguments.pop("model_type")
        what = self.info.training.network
        lines = [
            f"found: {self.description}",
            f"model: {what}, {kind}, {self.parameters:,} parameters",
            "network: " + ", ".join(f"{name}={value}" for name, value in arguments.items()),
        ]
        prediction = self.info.network.prediction
        start = self.info.sigma or prediction.start
        row = Prediction(prediction, one_step=self.info.task == "finetune")
        lines.append(
            f"prediction: {prediction.kind}; one step starts at noise level {start:g}, where the "
            f"network's error counts {row.gain(start):.3g} times"
        )
        if self.unsaid:
            lines.append(
                "note: the file does not say whether it is a diffusion model or a one-step "
                "generator; it was taken for a diffusion model. Of a generator (SiD, SiDA) import "
                "it again with --one-step --sigma 2.5"
            )
        if self.info.latents is not None:
            how = self.info.latents
            lines.append(
                f"latents: of an autoencoder whose black is {how.low:g}, by scale "
                f"{_listed(how.scale)} and bias {_listed(how.bias)}; images are made with --vae"
            )
        if self.info.images is not None:
            lines.append(f"images: {self.info.images:,}")
        return "\n".join([*lines, f"weights: {self.out}"])

    def write_network(self, path: Path) -> None:
        """The network's settings as YAML, with the scaling of its latents: a recipe with `extends:
        PATH` has this network."""
        values = self.info.network.model_dump(mode="json", exclude_defaults=True)
        values.pop("augment_dim", None)  # fine-tuning has none
        about: dict[str, Any] = {"network": {"model_type": "SongUNet"} | values}
        if self.info.latents is not None:
            how = self.info.latents
            about["latents"] = {"scale": list(how.scale), "bias": list(how.bias)}
        if self.info.task == "finetune" and self.info.sigma is not None:
            about["sigma"] = self.info.sigma
        text = yaml.safe_dump(about, sort_keys=False)
        write_atomic(path, f"# The network of {self.out.name}.\n{text}".encode())


def import_model(
    path: Path,
    out: Path,
    network: NetworkSettings | None = None,
    options: Options | None = None,
) -> Imported:
    """Write the model in a file, or in a folder of diffusers', as safetensors in float32, with what
    is needed to build its network in its metadata: `init=OUT` and `fasttrain sample OUT` take it.

    network: what a plain state dict's weights are of. options: what a file of another family's does
    not say. Raises UserError when the file is refused, does not say enough, or holds other weights
    than those of its network.
    """
    if path.is_dir() and not is_diffusers(path):
        raise UserError(f"{path} is a folder: a run's model is written by `fasttrain export`")
    if not path.exists():
        raise UserError(f"no file {path}")
    if out.resolve() == path.resolve():
        raise UserError(f"{out} is the file itself: name another one with --out")
    probe(out)
    found = read_model_file(path, options)
    info = found.info or _stated(path, found, network)
    if found.info is None and options is not None:
        options.check_used("a plain state dict")
    weights = {name: value.float() for name, value in found.weights.items()}
    kept = found.kept or {}
    origin = {"origin": found.description} | ({} if "source" in kept else found.itself) | kept
    write_tensors(out, weights, info.metadata() | origin)
    said = options is not None and "one_step" in options.given
    unsaid = found.ambiguous and not said
    return Imported(info, found.description, _parameters(weights), out, unsaid)


def _stated(path: Path, source: ModelFile, network: NetworkSettings | None) -> ModelInfo:
    """What a plain state dict is of: a diffusion model's network, as the user says."""
    if network is None:
        raise UserError(
            f"{path} does not describe the network of its weights: name --recipe, the fine-tuning "
            f"recipe that has this network"
        )
    info = ModelInfo(task="pretrain", network=network, sigma=None, name=path.name)
    labels = source.weights.get(AUGMENT)
    if labels is not None and labels.dim() == 2:
        width = {"augment_dim": labels.shape[1]}
        info = replace(info, network=network.model_copy(update=width))
    check_fit(outline(info, path), source.weights, path)
    return info


def _listed(numbers: Sequence[float]) -> str:
    """Channel by channel, or one number where all are the same."""
    each = numbers[:1] if len(set(numbers)) == 1 else numbers
    return ", ".join(f"{number:.5g}" for number in each)


def _parameters(weights: Mapping[str, Tensor]) -> int:
    """Numbers that training changes."""
    buffers = ("resample_filter", "freqs", "phases", "pos_embed")
    return sum(w.numel() for name, w in weights.items() if name.split(".")[-1] not in buffers)
