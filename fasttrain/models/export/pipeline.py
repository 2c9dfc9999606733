"""A folder that diffusers loads without fasttrain:

DIR/model_index.json, pipeline.py       the pipeline, one self-contained file
DIR/unet/config.json, pipeline.py       the network's settings, and its class: the same file
DIR/unet/diffusion_pytorch_model.safetensors
DIR/README.md                           the model card
DIR/preview.png, .gitattributes         for the Hugging Face hub: a picture, and what is stored as
                                        large files

DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from fasttrain.models.export.card import PICTURE
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.networks.network import Plain
from fasttrain.models.networks.registry import arguments_of
from fasttrain.system.errors import UserError
from fasttrain.system.files import read_json
from fasttrain.system.tensors import write_tensors

__all__ = ["LARGE_FILES", "network_arguments", "pipeline_source", "write_pipeline"]

PARTS = ("fasttrain.models.export.plain_generator", "fasttrain.models.export.diffusers_part")
"""What follows the network's own parts."""
MARK, END = "copied into exports from here", "copied into exports up to here"
UNUSED = ("augment_dim", "dropout", "label_dropout", "prediction")
"""Arguments that a network which makes images has no use for, and its wrapper's."""
CLASS_NAME = ["pipeline", "OneStepPipeline"]
LARGE_FILES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
"""`.gitattributes` of a repository on a hub."""
FILES = {
    ".gitattributes",
    PICTURE,
    "README.md",
    "model_index.json",
    "pipeline.py",
    "unet",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/pipeline.py",
}
TRIED_WITH = "0.42.1"
"""The version of diffusers that this is tested with."""
HEAD = '''"""A one-step image generator as a diffusers pipeline: the network in plain torch, its
latents by seed and the pipeline, in one file that needs torch, pillow and diffusers alone.

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
    images = pipeline(seeds=range(4)).images

Written by `fasttrain export --to diffusers`. SPDX-License-Identifier: Apache-2.0 (this file, not
the weights beside it).
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import is_accelerate_available
from PIL import Image
from torch import Tensor, nn
'''


def pipeline_source(plain: Plain) -> str:
    """The pipeline's file: of each part, the network's first, what is below its line, under one
    head."""
    bodies = []
    for part in (*plain.parts, *PARTS):
        package, _, name = part.rpartition(".")
        text = (resources.files(package) / f"{name}.py").read_text(encoding="utf-8")
        lines = text.split("\n")
        first = next(i for i, line in enumerate(lines) if line.endswith(MARK))
        last = next((i for i, line in enumerate(lines) if line.endswith(END)), len(lines))
        bodies.append("\n".join(lines[first + 1 : last]).strip("\n"))
    return "\n\n\n".join([HEAD.strip("\n"), *bodies]) + "\n"


def network_arguments(info: ModelInfo) -> dict[str, Any]:
    """The arguments that `build_plain` takes, as JSON has them: without those of training."""
    values = arguments_of(info.network)
    return json.loads(json.dumps({n: x for n, x in values.items() if n not in UNUSED}))


def write_pipeline(
    out: Path,
    weights: Mapping[str, Tensor],
    info: ModelInfo,
    metadata: Mapping[str, str],
    card: str,
    plain: Plain,
    extra: Mapping[str, bytes],
) -> None:
    """Write the folder, whole or not at all. Raises UserError when something else is there.

    extra: further files at the top, by name.
    """
    if (out.exists() or out.is_symlink()) and not _is_ours(out):
        raise UserError(
            f"{out} is there and is no exported pipeline, or holds more: name another folder with "
            f"--out"
        )
    index = {
        "_class_name": CLASS_NAME,
        "_diffusers_version": TRIED_WITH,
        "unet": ["pipeline", "OneStepUNet"],
        "sigma": info.sigma,
        "sigma_mid": info.sigma_mid,
        "class_names": list(info.classes),
    }
    source = pipeline_source(plain)
    said = info.network.prediction.model_dump(mode="json", exclude_defaults=True)
    config = {
        "_class_name": "OneStepUNet",
        "_diffusers_version": TRIED_WITH,
        "network": network_arguments(info) | ({"prediction": said} if said else {}),
    }
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as work:
        new, old = Path(work, "new"), Path(work, "old")
        unet = new / "unet"
        unet.mkdir(parents=True)
        for folder in (new, unet):
            (folder / "pipeline.py").write_text(source, encoding="utf-8")
        (new / "model_index.json").write_text(json.dumps(index, indent=1))
        (unet / "config.json").write_text(json.dumps(config, indent=1))
        (new / "README.md").write_text(card, encoding="utf-8")
        for name, content in extra.items():
            (new / name).write_bytes(content)
        write_tensors(unet / "diffusion_pytorch_model.safetensors", weights, metadata)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise


def _is_ours(folder: Path) -> bool:
    """Whether a folder is an exported pipeline and nothing else, so that it can be replaced."""
    try:
        index = read_json(folder / "model_index.json")
    except (OSError, ValueError):
        return False
    files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    named = index.get("_class_name") == CLASS_NAME
    return named and not folder.is_symlink() and files <= FILES
