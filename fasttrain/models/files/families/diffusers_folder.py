"""Folders as diffusers writes them: `unet/` (UNet2DModel) or `transformer/` (DiTTransformer2DModel)
beside `scheduler/`. The network is diffusers' own; what it predicts and on which schedule is what
the scheduler's config says. Nothing of diffusers' loading code runs: the configs are JSON, the
weights safetensors, or a `.bin` by the reader of pickles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fasttrain.models.files.edm_pickle import read_checkpoint
from fasttrain.models.files.families.dit import SCALE
from fasttrain.models.files.families.foreign import Foreign, Latents
from fasttrain.models.files.families.options import Options
from fasttrain.system.errors import UserError
from fasttrain_data.pickle_data import Refused, shown

__all__ = ["is_diffusers", "read_config", "read_diffusers", "read_weights"]

MAX_CONFIG = 1 << 20
"""Bytes."""
PLACES = ("unet_ema", "unet", "transformer_ema", "transformer", "")
"""Where a folder has its network, an average before raw weights; it may be the network's own."""
OF_THE_AVERAGE = (
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
    *("inv_gamma", "power"),
)
"""What diffusers' EMAModel adds to the settings of its network."""
WEIGHTS = "diffusion_pytorch_model"
NETWORKS = {
    "UNet2DModel": "DiffusersUNet",
    "DiTTransformer2DModel": "DiffusersTransformer",
    "Transformer2DModel": "DiffusersTransformer",
}
KINDS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
BETAS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of diffusers' attention before 2023."""


def is_diffusers(path: Path) -> bool:
    """Whether a folder is one of diffusers', and not a run's."""
    return not (path / "config.yaml").exists() and any(
        (path / place / "config.json").is_file() for place in PLACES
    )


def read_diffusers(path: Path, options: Options) -> Foreign:
    place = next(path / place for place in PLACES if (path / place / "config.json").is_file())
    config = read_config(place / "config.json")
    kind = str(config.get("_class_name"))
    if kind not in NETWORKS or (path / "text_encoder").exists():
        what = "a text-to-image model" if (path / "text_encoder").exists() else shown(kind)
        raise UserError(
            f"{path} holds {what}: the networks of diffusers that are known here are "
            f"UNet2DModel and DiTTransformer2DModel, without text"
        )
    if kind == "Transformer2DModel" and config.get("norm_type") != "ada_norm_zero":
        raise UserError(f"{path} holds a Transformer2DModel that is no DiT")
    scheduler = path / "scheduler" / "scheduler_config.json"
    options.config.update(read_config(scheduler) if scheduler.is_file() else {})
    weights = read_weights(place)
    channels, out = config.get("in_channels", 3), config.get("out_channels") or 3
    classes = config.get("num_class_embeds" if kind == "UNet2DModel" else "num_embeds_ada_norm")
    size = config.get("sample_size")
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    size = options.integer("sample_size", size, why="the size of its images (sample_size)")
    sigma, prediction = _prediction(config, options)
    prediction["learned_variance"] = out == 2 * channels
    options.check_used("a folder of diffusers'")
    text = {n: v for n, v in config.items() if n[:1] != "_" and n not in OF_THE_AVERAGE}
    if kind == "Transformer2DModel":
        text = {name: value for name, value in text.items() if name in DIT_CONFIG}
    network = {
        "model_type": NETWORKS[kind],
        "img_resolution": size,
        "img_channels": channels,
        "label_dim": classes or 0,
        "prediction": prediction,
        "options": {"config": json.dumps(text, sort_keys=True)},
    }
    named = {f"model.net.{_renamed(name)}": value for name, value in weights.items()}
    return Foreign(
        f"{kind}, a folder of diffusers'", network, named, sigma, _latents(path, channels)
    )


DIT_CONFIG = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "num_layers",
    "dropout",
    "norm_num_groups",
    "attention_bias",
    "sample_size",
    "patch_size",
    "activation_fn",
    "num_embeds_ada_norm",
    "upcast_attention",
    "norm_type",
    "norm_elementwise_affine",
    "norm_eps",
)
"""What of the older class's config the newer one takes."""


def _prediction(config: Mapping[str, Any], options: Options) -> tuple[float | None, dict[str, Any]]:
    """Noise level of a generator's step, and the row of the preconditioning table."""
    scheduler = str(options.get("_class_name", ""))
    steps = options.integer("num_train_timesteps", 1000)
    if config.get("time_embedding_type") == "fourier":
        if scheduler not in ("ScoreSdeVeScheduler", ""):
            raise UserError(f"{options.path}: {shown(scheduler)} is not that of an NCSN++")
        centred = bool(config.get("center_input_sample"))
        factor = 2 if centred else 1  # of noise on [-1, 1] against that on the network's range
        low, high = options.number("sigma_min", 0.01), options.number("sigma_max", 50.0)
        prediction = {"kind": "score", "sigma_min": factor * low, "sigma_max": factor * high}
        time = {"time": "half"} if centred else {"time": "half", "scale": 2.0}
        return None, prediction | time
    if scheduler == "FlowMatchEulerDiscreteScheduler":
        return None, {"kind": "flow", "time": "flow", "scale": float(steps)}
    if scheduler == "CMStochasticIterativeScheduler":
        low, high = options.number("sigma_min", 0.002), options.number("sigma_max", 80.0)
        data = options.number("sigma_data", 0.5)
        prediction = {"kind": "edm", "scale": 250.0, "sigma_data": data, "eps": low}
        return high, prediction | {"sigma_min": low, "sigma_max": high}
    if scheduler.startswith("EDM"):
        if options.get("prediction_type") not in (None, "epsilon"):
            raise UserError(
                f"{options.path}: {scheduler} of {shown(options.get('prediction_type'))} scales "
                "the network's output otherwise than EDM, which is not known here"
            )
        return None, {"kind": "edm", "sigma_data": options.number("sigma_data", 0.5)}
    if options.get("trained_betas") is not None:
        raise UserError(f"{options.path}: its scheduler has betas of its own, not a known schedule")
    if config.get("center_input_sample"):
        raise UserError(f"{options.path}: it takes images in [0, 1], which only NCSN++ may here")
    kind = options.choice("prediction_type", tuple(KINDS), why="what it predicts")
    betas = options.choice("beta_schedule", tuple(BETAS), why="its noise schedule")
    return None, {
        "kind": KINDS[kind],
        "time": "steps",
        "betas": BETAS[betas],
        "steps": steps,
        "beta_start": options.number("beta_start", 0.0001),
        "beta_end": options.number("beta_end", 0.02),
        "zero_snr": options.truth("rescale_betas_zero_snr", False),
    }


def _latents(path: Path, channels: int) -> Latents | None:
    """Of the autoencoder beside the network."""
    config = path / "vae" / "config.json"
    if not config.is_file():
        return None
    values = read_config(config)
    scale, shift = values.get("scaling_factor", SCALE), values.get("shift_factor") or 0.0
    return Latents((float(scale),) * channels, (-float(shift) * float(scale),) * channels)


def read_config(path: Path) -> dict[str, Any]:
    """A config's JSON. Raises UserError when it is none."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not the JSON of a config") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not the JSON of a config")
    return values


def read_weights(folder: Path, stem: str = WEIGHTS) -> dict[str, Tensor]:
    """The weights in a part of a folder, in float32: safetensors before a pickle.

    Raises UserError when there are none, or they are refused.
    """
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            try:
                with safe_open(folder / name, "pt") as file:
                    return {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise UserError(f"{folder / name} is not a safetensors file: {error}") from None
    for name in (f"{stem}.bin", f"{stem}.fp16.bin"):
        if (folder / name).is_file():
            try:
                found = read_checkpoint(folder / name)
                return {key: value.tensor().float() for key, value in found.tensors.items()}
            except Refused as error:
                raise UserError(f"{folder / name} is refused: {error}") from None
    raise UserError(f"{folder} has no {stem}.safetensors and no {stem}.bin")


def _renamed(name: str) -> str:
    """A weight's name as diffusers has it today."""
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in OLD_ATTENTION:
        return f"{match[1]}.{OLD_ATTENTION[match[2]]}.{match[3]}"
    return name
