"""Folders as diffusers writes them: `unet/` (UNet2DModel) or `transformer/` (DiTTransformer2DModel)
beside `scheduler/`, or the files of both in one folder. The network is diffusers' own; what it
predicts and on which schedule is what the scheduler's config says. Nothing of diffusers' loading
code runs: the configs are JSON, the weights safetensors, or a `.bin` by the reader of pickles.
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
from fasttrain.models.files.families.foreign import Foreign, Latents
from fasttrain.models.files.families.latents import SCALE, latents_of, learns_variance
from fasttrain.models.files.families.options import Options
from fasttrain.system.errors import UserError
from fasttrain_data.pickle_data import Refused, shown

__all__ = [
    "AUTOENCODERS",
    "is_diffusers",
    "read_config",
    "read_diffusers",
    "read_weights",
    "weights_in",
]

MAX_CONFIG = 1 << 20
"""Bytes."""
MAX_CHANNELS = 128
SCHEDULER = "scheduler_config.json"
PLACES = ("unet_ema", "unet", "transformer_ema", "transformer", "")
"""Where a folder has its network, an average before raw weights; it may be the network's own."""
OF_THE_AVERAGE = (
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
    *("inv_gamma", "power"),
)
"""What diffusers' EMAModel adds to the settings of its network."""
AUTOENCODERS = ("vae", "vqvae")
"""Folders of an autoencoder of latents, beside the network's."""
WEIGHTS = "diffusion_pytorch_model"
NETWORKS = {
    "UNet2DModel": "DiffusersUNet",
    "DiTTransformer2DModel": "DiffusersTransformer",
    "Transformer2DModel": "DiffusersTransformer",
}
SCHEDULERS = (
    *("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
)
"""Those whose class has `DEFAULTS` for what their config leaves out."""
DEFAULTS = {"prediction_type": "epsilon", "beta_schedule": "linear"}
"""The numbers of steps and betas are those of `PredictionSettings`."""
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
    schedulers = (path / "scheduler" / SCHEDULER, path / SCHEDULER)
    scheduler = next((file for file in schedulers if file.is_file()), None)
    options.config.update({} if scheduler is None else read_config(scheduler))
    weights = read_weights(place)
    channels, out = _channels(place / "config.json", config)
    classes = config.get("num_class_embeds" if kind == "UNet2DModel" else "num_embeds_ada_norm")
    size = config.get("sample_size")
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    size = options.integer("sample_size", size, why="the size of its images (sample_size)")
    sigma, prediction = _prediction(config, options)
    prediction["learned_variance"] = learns_variance(path, channels, out)
    latents = _latents(path, channels, options)
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
    return Foreign(f"{kind}, a folder of diffusers'", network, named, sigma, latents)


def _channels(path: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """What a network takes and makes, by the defaults of its class."""
    unet = config.get("_class_name") == "UNet2DModel"
    channels = config.get("in_channels", 3 if unet else 4)
    out = config.get("out_channels", 3 if unet else None)
    out = channels if out is None else out
    for name, value in (("in_channels", channels), ("out_channels", out)):
        if type(value) is not int or not 0 < value <= MAX_CHANNELS:
            raise UserError(f"{path} describes no network: {name} is {shown(str(value))}")
    return channels, out


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
        low = options.number("sigma_min", 0.01)
        high = options.number("sigma_max", 1348.0 if scheduler else None, why="its highest noise")
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
        kind = options.get("prediction_type", "epsilon")
        if kind != "epsilon":
            raise UserError(
                f"{options.path}: {shown(scheduler)} of {shown(str(kind))} scales the network's "
                f"output otherwise than EDM, which is not known here"
            )
        return None, {"kind": "edm", "sigma_data": options.number("sigma_data", 0.5)}
    if options.get("trained_betas") is not None:
        raise UserError(f"{options.path}: its scheduler has betas of its own, not a known schedule")
    if config.get("center_input_sample"):
        raise UserError(f"{options.path}: it takes images in [0, 1], which only NCSN++ may here")
    known = DEFAULTS if scheduler in SCHEDULERS else {}
    usual = scheduler in ("", *SCHEDULERS)
    kind, betas = known.get("prediction_type"), known.get("beta_schedule")
    kind = options.choice("prediction_type", tuple(KINDS), kind, why="what it predicts")
    betas = options.choice("beta_schedule", tuple(BETAS), betas, why="its noise schedule")
    return None, {
        "kind": KINDS[kind],
        "time": "steps",
        "betas": BETAS[betas],
        "steps": steps,
        "beta_start": options.number("beta_start", 0.0001 if usual else None),
        "beta_end": options.number("beta_end", 0.02 if usual else None),
        "zero_snr": options.truth("rescale_betas_zero_snr", False),
    }


def _latents(path: Path, channels: int, options: Options) -> Latents | None:
    """By the autoencoder beside the network, if there is one."""
    for name in AUTOENCODERS:
        config = path / name / "config.json"
        if config.is_file():
            said = Options(config, config=read_config(config))
            # The config of a VQModel without an entry is of before there was one, or a scale.
            usual = 1.0 if said.get("_class_name") == "VQModel" else SCALE
            scale, shift = said.number("scaling_factor", usual), said.number("shift_factor", 0.0)
            return latents_of(options, channels, scale, shift)
    return latents_of(options, channels)


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
    for ending in ("safetensors", "fp16.safetensors", "bin", "fp16.bin"):
        if (folder / f"{stem}.{ending}").is_file():
            return weights_in(folder / f"{stem}.{ending}")
    raise UserError(f"{folder} has no {stem}.safetensors and no {stem}.bin")


def weights_in(path: Path, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The weights in a safetensors file or a pickle, in float32.

    without: how the names begin of those that are left in the file. Raises UserError.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if not name.startswith(without)]  # noqa: SIM118
                return {name: file.get_tensor(name).float() for name in names}
        stored = read_checkpoint(path).tensors.items()
        return {name: v.tensor().float() for name, v in stored if not name.startswith(without)}
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
    except Refused as error:
        raise UserError(f"{path} is refused: {error}") from None


def _renamed(name: str) -> str:
    """A weight's name as diffusers has it today."""
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in OLD_ATTENTION:
        return f"{match[1]}.{OLD_ATTENTION[match[2]]}.{match[3]}"
    return name
