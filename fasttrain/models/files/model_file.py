"""A model in one file: what `fasttrain export` and `import` write, EDM's pickles and training
states, other families' files and folders, and plain state dicts.

    model = read_model_file(Path("edm-imagenet-64x64-cond-adm.pkl"))
    model.info.network, model.weights

Our own files and EDM's say what network their weights are of, and hold those of that network and no
others; of other families' files some leave things out, which `Options` then says. They are parsed,
never run: `fasttrain.models.files.edm_pickle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fasttrain.checkpoints.origins import origin_in
from fasttrain.models.files.edm_pickle import Checkpoint, is_pickle, is_zip, read_checkpoint
from fasttrain.models.files.exported import WEIGHTS, exported_info, is_exported
from fasttrain.models.files.families.diffusers_folder import read_diffusers
from fasttrain.models.files.families.edm import AMBIGUOUS, describe_edm, weights_of_edm
from fasttrain.models.files.families.foreign import Foreign, Weights, refusing
from fasttrain.models.files.families.options import Options
from fasttrain.models.files.families.recognise import bare, reader_of
from fasttrain.models.files.fit import AUGMENT, FILTER, check_fit, outline
from fasttrain.models.files.model_info import ModelInfo, described, info_of
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256

__all__ = [
    "AUGMENT",
    "ModelFile",
    "ModelInfo",
    "check_fit",
    "outline",
    "own_file",
    "read_foreign",
    "read_model_file",
    "read_safetensors",
]


@dataclass(frozen=True)
class ModelFile:
    """Content of a model file: full named weights, and their description if there is one."""

    path: Path
    weights: dict[str, Tensor]
    info: ModelInfo | None
    description: str
    """Kind of the file, as text."""
    kept: dict[str, str] | None = None
    """What a safetensors file says of where it came from, under the names of `origins.KEPT`."""
    ambiguous: bool = False
    """Whether nothing in it tells a diffusion model from a one-step generator."""

    @property
    def origin(self) -> dict[str, str]:
        """Origin of the weights: recorded in the file, or the file itself."""
        return self.itself if self.kept is None else self.kept

    @property
    def itself(self) -> dict[str, str]:
        """This file as the source of another one's weights."""
        return {"source": self.path.name} | (
            {} if self.path.is_dir() else {"source_sha256": sha256(self.path)}
        )


def read_model_file(path: Path, options: Options | None = None) -> ModelFile:
    """Raises UserError when the file cannot be read, or holds other weights than it says, or does
    not say all of it and `options` neither."""
    options = options or Options(path)
    if path.is_dir():
        return _read_exported(path) if is_exported(path) else read_foreign(path, options)
    with path.open("rb") as file:
        start = file.read(16)
    ours = path.suffix == ".safetensors" or start[5:9] == b"\0\0\0{"  # a length, then JSON
    if not ours and (is_zip(start) or is_pickle(start)):
        return read_foreign(path, options)
    metadata, weights = read_safetensors(path)
    if "network" not in metadata and (reader := reader_of(bare(weights), path)):
        with refusing(path):
            tensors = Weights({n: value.float() for n, value in bare(weights).items()}, path)
            return _fitted(path, reader(tensors, options), None)
    options.check_used("a safetensors file")
    return own_file(path, metadata, weights)


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors. Raises UserError."""
    try:
        with safe_open(path, "pt") as tensors:
            metadata = tensors.metadata() or {}
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a safetensors file: {error}; nor is it a pickle or a file of torch.save"
        ) from None
    return metadata, weights


def own_file(path: Path, metadata: Mapping[str, str], weights: dict[str, Tensor]) -> ModelFile:
    """A file of ours, whose weights must be those of the network that it describes."""
    info = described(path, metadata)
    if info is not None:
        check_fit(outline(info, path), weights, path)
    kept = origin_in(metadata)
    return ModelFile(path, weights, info, kept.get("origin", "weights in safetensors"), kept)


def _read_exported(path: Path) -> ModelFile:
    """An exported pipeline: its weights' file, which may have lost what it says of itself."""
    model = read_model_file(path / WEIGHTS)
    if model.info is not None:
        return replace(model, info=replace(model.info, name=path.name))
    info = exported_info(path)
    check_fit(outline(info, path), model.weights, path)
    return replace(model, info=info, description="a folder of diffusers', exported here")


def read_foreign(path: Path, options: Options) -> ModelFile:
    """A model of another family, or of EDM's, with what the user says of it; a plain state dict of
    ours has no `info`."""
    with refusing(path):
        if path.is_dir():
            return _fitted(path, read_diffusers(path, options), None)
        found = read_checkpoint(path)
        if found.class_name is not None:
            return _read_edm(path, found, options)
        stored = bare(found.tensors)
        reader = reader_of(stored, path)
        if reader is None:
            weights = {name: value.tensor() for name, value in stored.items()}
            return ModelFile(path, weights, None, "a plain state dict")
        if "args" in found.beside:
            options.config = {"args": found.beside["args"].state} | options.config
        tensors = Weights({n: value.tensor().float() for n, value in stored.items()}, path)
        return _fitted(path, reader(tensors, options), found.part)


def _read_edm(path: Path, found: Checkpoint, options: Options) -> ModelFile:
    """Of a class of EDM's, which says what it is: checked before any of it is copied."""
    foreign = describe_edm(found, options)
    info = info_of(foreign, path)
    expected = outline(info, path)
    stored = weights_of_edm(found.tensors, found.class_name)
    check_fit(expected, stored, path)
    weights = {name: stored[name].tensor().float() for name in expected}
    check_fit(expected, weights, path)
    ambiguous = found.class_name in AMBIGUOUS
    return ModelFile(path, weights, info, foreign.description, ambiguous=ambiguous)


def _fitted(path: Path, foreign: Foreign, part: str | None) -> ModelFile:
    """A model whose reader has named its weights."""
    info = info_of(foreign, path)
    expected = outline(info, path)
    filters = {n: v for n, v in expected.items() if n.endswith(FILTER)}
    weights = filters | foreign.weights
    check_fit(expected, weights, path)
    about = foreign.description + (f", `{part}`" if part else "")
    weights = {name: weights[name].contiguous() for name in expected}
    return ModelFile(path, weights, info, about)
