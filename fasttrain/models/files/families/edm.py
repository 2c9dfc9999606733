"""EDM's pickles and those that grew out of its code: `edm-*` and `baseline-*`, SiD's and SiDA's
generators, D2O's, and EDM2's. Their class and its arguments say what they are; whether a network is
a diffusion model or a one-step generator they do not say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fasttrain.models.files.edm_pickle import Checkpoint
from fasttrain.models.files.families.foreign import Foreign, Latents
from fasttrain.models.files.families.latents import latents_of
from fasttrain.models.files.families.options import Options
from fasttrain.models.files.numpy_data import Array
from fasttrain.models.files.torch_storage import StoredTensor
from fasttrain.models.networks.registry import network_class
from fasttrain.settings import NetworkSettings
from fasttrain.settings.registry import NETWORKS
from fasttrain.system.errors import UserError
from fasttrain_data.pickle_data import shown

__all__ = ["AMBIGUOUS", "CLASSES", "ONE_STEP_SIGMA", "describe_edm", "weights_of_edm"]

CLASSES = {
    "EDMPrecond": "edm",
    "EDMPrecond_EncoderDecoder": "edm",
    "D2OPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
    "Precond": "edm2",
}
"""Class of a preconditioner -> how it is read here."""
AMBIGUOUS = ("EDMPrecond", "EDMPrecond_EncoderDecoder")
"""Classes of diffusion models that are those of SiD's and SiDA's generators, too."""
ONE_STEP_SIGMA = 80.0
"""Of D2O's generators."""
MAX_LENGTH = 100
"""Of a list in a description."""
EDM2_OPTIONS = {
    "channel_mult_noise": "noise_multiple",
    "channel_mult_emb": "emb_multiple",
    "channels_per_head": "channels_per_head",
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "res_balance": "res_balance",
    "attn_balance": "attn_balance",
}


def describe_edm(found: Checkpoint, options: Options) -> Foreign:
    """What the class and its arguments come to, without the weights."""
    path, kind = options.path, CLASSES.get(found.class_name or "")
    if kind is None:
        raise UserError(
            f"{path} holds a network of the class {shown(str(found.class_name))}: the classes "
            f"that are known here are {', '.join(CLASSES)}"
        )
    arguments = dict(found.arguments)
    for values in (arguments, *arguments.values()):  # pydantic makes an error of each bad one
        if isinstance(values, list | tuple | dict | set) and len(values) > MAX_LENGTH:
            raise UserError(f"{path} describes no network: it has more than {MAX_LENGTH} values")
    arguments.pop("use_fp16", None)  # how it computed; its weights are float32, or become it
    prediction = _PREDICTIONS[kind](path, arguments)
    if kind == "edm2":
        network = _edm2(path, arguments)
    else:
        default = "SongUNet" if kind in ("vp", "ve") else "DhariwalUNet"
        model_type = arguments.pop("model_type", default)
        if isinstance(model_type, str):
            model_type = model_type.removesuffix("_EncoderDecoder")
        network = {"model_type": model_type} | _defaults(model_type) | arguments
    of_d2o = found.class_name == "D2OPrecond"
    if of_d2o:
        options.refuse("one_step", True, why="a D2OPrecond is a one-step generator")
    one_step = options.truth("one_step", of_d2o)
    sigma = options.number("sigma", ONE_STEP_SIGMA) if one_step else None
    if one_step and not of_d2o:
        prediction["eps"] = 0.0  # the wrapper of a diffusion model
    if prediction != {"kind": "edm"}:
        network["prediction"] = prediction
    latents = _latents(found, options, network.get("img_channels"))
    options.check_used("a pickle of EDM's kind")
    about = f"{found.class_name}, `{found.part}` of a checkpoint of EDM's"
    if kind == "edm2":
        about += "2"
    return Foreign(about, network, {}, sigma, latents)


def weights_of_edm(
    tensors: Mapping[str, StoredTensor], class_name: str | None
) -> dict[str, StoredTensor]:
    """Under our names: EDM2's U-Net is `unet` there, and its estimate of the loss is left out."""
    if CLASSES.get(class_name or "") == "edm2":
        unet = {n: _in_a_row(value) for n, value in tensors.items() if n.startswith("unet.")}
        return {f"model.{name.removeprefix('unet.')}": value for name, value in unet.items()}
    return {name: value for name, value in tensors.items() if name != "u"}


def _in_a_row(stored: StoredTensor) -> StoredTensor:
    """A gain, which is a scalar there, with the one dimension that it has here."""
    return stored if stored.shape else replace(stored, shape=(1,), strides=(1,))


def _defaults(model_type: Any) -> dict[str, Any]:
    """Those of a network's own, where a field of the settings has another."""
    if type(model_type) is not str or model_type not in NETWORKS:
        return {}
    own = network_class(model_type).defaults()
    return {name: own[name] for name in NetworkSettings.model_fields if name in own}


def _number(path: Any, arguments: dict[str, Any], name: str, default: float) -> float:
    value = arguments.pop(name, default)
    if type(value) not in (int, float) or not value >= 0:
        raise UserError(f"{path} describes no network: its {name} is {shown(str(value))}")
    return float(value)


def _range(path: Any, arguments: dict[str, Any], low: float, high: float) -> dict[str, float]:
    """The noise levels, where they are bounded."""
    low = _number(path, arguments, "sigma_min", low)
    high = _number(path, arguments, "sigma_max", high)
    bounds = {"sigma_min": low if low > 0 else None, "sigma_max": high if high < math.inf else None}
    return {name: value for name, value in bounds.items() if value is not None}


def _edm(path: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    bounds = _range(path, arguments, 0.0, math.inf)
    data = _number(path, arguments, "sigma_data", 0.5)
    return {"kind": "edm"} | bounds | ({} if data == 0.5 else {"sigma_data": data})


def _vp(path: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    beta_d = _number(path, arguments, "beta_d", 19.9)
    beta_min = _number(path, arguments, "beta_min", 0.1)
    steps = _number(path, arguments, "M", 1000)
    epsilon = _number(path, arguments, "epsilon_t", 1e-5)
    try:
        low, high = (
            math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t)) for t in (epsilon, 1.0)
        )
    except OverflowError:
        raise UserError(f"{path} describes no network: its noise levels have no end") from None
    names = {"vp_beta_d": beta_d, "vp_beta_min": beta_min, "sigma_min": low, "sigma_max": high}
    return {"kind": "epsilon", "time": "edm_vp", "steps": steps, **names}


def _ve(path: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "score", "time": "half_log"} | _range(path, arguments, 0.02, 100.0)


def _iddpm(path: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    for name, value in (("C_1", 0.001), ("C_2", 0.008)):
        if _number(path, arguments, name, value) != value:
            raise UserError(f"{path} was made with another {name} than {value}")
    steps = _number(path, arguments, "M", 1000)
    return {"kind": "epsilon", "time": "iddpm", "steps": steps, "learned_variance": True}


def _edm2_prediction(path: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    data = _number(path, arguments, "sigma_data", 0.5)
    return {"kind": "edm"} | ({} if data == 0.5 else {"sigma_data": data})


_PREDICTIONS = {"edm": _edm, "vp": _vp, "ve": _ve, "iddpm": _iddpm, "edm2": _edm2_prediction}


def _edm2(path: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """EDM2's arguments are those of EDM's U-Nets, and some of its own."""
    arguments.pop("logvar_channels", None)
    if arguments.pop("clip_act", 256) != 256:
        raise UserError(f"{path} was made with another clip_act than 256")
    options = {
        ours: arguments.pop(theirs)
        for theirs, ours in EDM2_OPTIONS.items()
        if arguments.get(theirs) is not None
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    network = {"model_type": "EDM2UNet"} | _defaults("EDM2UNet") | arguments
    return network | {"options": options}


def _latents(found: Checkpoint, options: Options, channels: Any) -> Latents | None:
    """Of EDM2's encoder of latents: what it decodes is an image in [0, 1]."""
    state = found.beside["encoder"].state if "encoder" in found.beside else {}
    scale, bias = state.get("scale"), state.get("bias")
    if isinstance(scale, Array) and isinstance(bias, Array):
        return Latents(scale.values, bias.values, low=0.0)
    known = type(channels) is int and 0 < channels <= MAX_LENGTH  # its settings refuse others
    return latents_of(options, channels) if known else None
