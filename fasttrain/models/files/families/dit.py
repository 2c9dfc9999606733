"""DiT and SiT: plain state dicts, and what their training code writes (the average is taken). Both
have the same names: the arguments of a training tell them apart, else the user does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fasttrain.models.files.families.foreign import Foreign
from fasttrain.models.files.families.latents import SCALE, latents_of, learns_variance
from fasttrain.models.files.families.options import Options
from fasttrain.system.errors import UserError

__all__ = ["is_dit", "read_dit"]

HEADS = {"S": 6, "B": 12, "L": 16, "XL": 16}
"""Of the published sizes."""
MAX_DEPTH = 500


def is_dit(names: Mapping[str, Any]) -> bool:
    needed = ("x_embedder.proj.weight", "final_layer.adaLN_modulation.1.weight", "pos_embed")
    return all(name in names for name in needed) and "blocks.0.attn.qkv.weight" in names


def read_dit(tensors: Mapping[str, Tensor], options: Options) -> Foreign:
    model = options.config.pop("model", None)
    options.section("args")
    arguments = options.config.get("model", model)
    if isinstance(model, Mapping):
        options.config |= model
    trained = isinstance(arguments, str)  # by their training code, whose arguments lie beside it
    default = ("sit" if "path_type" in options.config else "dit") if trained else None
    family = options.choice("family", ("dit", "sit"), default, why="whether it is DiT or SiT")
    patch = tensors["x_embedder.proj.weight"]
    hidden, channels, size = patch.shape[0], patch.shape[1], patch.shape[2]
    tokens = tensors["pos_embed"].shape[1]
    side = math.isqrt(tokens)
    found = [re.match(r"blocks\.(\d{1,3})\.", name) for name in tensors]
    depth = max((int(match[1]) + 1 for match in found if match), default=0)
    if side * side != tokens or not 0 < depth <= MAX_DEPTH or patch.shape[2] != patch.shape[3]:
        raise UserError(f"{options.path}: it is no square transformer of DiT's kind")
    named = (
        re.fullmatch(r"[DS]iT-(S|B|L|XL)/\d+", arguments) if isinstance(arguments, str) else None
    )
    heads = options.integer(
        "num_heads", HEADS[named[1]] if named else None, why="the heads of its attention"
    )
    table = tensors.get("y_embedder.embedding_table.weight")
    rows = 0 if table is None else table.shape[0]
    classes = options.integer("num_classes", max(rows - 1, 0))
    if classes not in (rows, rows - 1):
        raise UserError(f"num_classes={classes}: its table of classes has {rows} rows")
    out = tensors["final_layer.linear.weight"].shape[0] // size**2
    prediction = _dit(options) if family == "dit" else _sit(options)
    prediction["learned_variance"] = learns_variance(options.path, channels, out)
    latents = latents_of(options, channels, SCALE if channels == 4 else None)
    options.check_used(f"a {'DiT' if family == 'dit' else 'SiT'}")
    network = {
        "model_type": "DiT",
        "img_resolution": side * size,
        "img_channels": channels,
        "label_dim": classes,
        "prediction": prediction,
        "options": {
            "patch_size": size,
            "hidden_size": hidden,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / hidden,
            "null_class": rows == classes + 1,
        },
    }
    weights = {f"model.{name}": value for name, value in tensors.items()}
    return Foreign("a DiT" if family == "dit" else "a SiT", network, weights, latents=latents)


def _dit(options: Options) -> dict[str, Any]:
    return {
        "kind": "epsilon",
        "time": "steps",
        "betas": options.choice("noise_schedule", ("linear", "cosine"), "linear"),
        "steps": options.integer("diffusion_steps", 1000),
    }


def _sit(options: Options) -> dict[str, Any]:
    options.refuse("path_type", "Linear", why="only SiT's linear path is")
    options.refuse("prediction", "velocity", why="only SiT's velocity is")
    return {"kind": "reverse_flow", "time": "reverse_flow"}
