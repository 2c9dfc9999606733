"""CompVis' latent-diffusion without conditioning: a Lightning checkpoint whose `state_dict` holds
the U-Net (`model.diffusion_model.*`), its average (`model_ema.*`, names without their dots), the
first stage (`fasttrain.models.files.vae`) and the schedule.

The U-Net is ADM's in its first attention order. There is no one schedule of latent-diffusion's:
each model has its own ends, which are read from `alphas_cumprod`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fasttrain.models.files.families.adm import unet_of
from fasttrain.models.files.families.foreign import Foreign, Latents, Weights
from fasttrain.models.files.families.options import Options
from fasttrain.settings.schedules import Betas, discrete_levels
from fasttrain.system.errors import UserError

__all__ = ["AVERAGE", "FIRST_STAGE", "is_ldm", "read_ldm"]

UNET, AVERAGE, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
KINDS = {"eps": "epsilon", "x0": "x0", "v": "v"}


def is_ldm(names: Mapping[str, Any]) -> bool:
    return f"{UNET}input_blocks.0.0.weight" in names


def read_ldm(tensors: Mapping[str, Tensor], options: Options) -> Foreign:
    """The averaged U-Net and its schedule."""
    if any(".attn2." in name or name.startswith("cond_stage_model.") for name in tensors):
        raise UserError(
            f"{options.path} is refused: it is conditioned on text or another input (it has a "
            f"cond_stage_model or cross-attention), and only classes are known here"
        )
    options.section("model")
    options.section("params")
    options.section("unet_config", "params")
    raw = {n.removeprefix(UNET): value for n, value in tensors.items() if n.startswith(UNET)}
    averaged = any(name.startswith(AVERAGE) for name in tensors)
    if averaged:
        raw = {name: tensors[_in_average(name)] for name in raw}
    unet = Weights(raw, options.path)
    size = options.integer("image_size", why="the size of its latents")
    network, weights = unet_of(unet, options, size, options.truth("use_new_attention_order", False))
    kind = KINDS[options.choice("parameterization", tuple(KINDS), "eps")]
    prediction = {"kind": kind, "time": "steps"} | _schedule(tensors, options)
    stored = tensors.get("scale_factor")
    scale = float(stored) if stored is not None else options.number("scale_factor", 1.0)
    channels = network["img_channels"]
    options.check_used("a latent-diffusion model")
    return Foreign(
        "a latent-diffusion model, " + ("its average" if averaged else "which has no average"),
        network | {"prediction": prediction},
        weights,
        latents=Latents((scale,) * channels, (0.0,) * channels),
    )


def _in_average(name: str) -> str:
    """The name that a weight of the U-Net has there."""
    return f"{AVERAGE}diffusion_model{name.replace('.', '')}"


def _schedule(tensors: Mapping[str, Tensor], options: Options) -> dict[str, Any]:
    """The betas that `alphas_cumprod` comes of."""
    signal = tensors.get("alphas_cumprod")
    if signal is None:
        return {
            "betas": "scaled_linear",
            "steps": options.integer("timesteps", 1000),
            "beta_start": options.number("linear_start", why="its schedule"),
            "beta_end": options.number("linear_end", why="its schedule"),
        }
    signal = signal.double()
    before = torch.cat([torch.ones_like(signal[:1]), signal[:-1]])
    betas = 1 - signal / before
    stored = tensors.get("betas")
    betas = betas if stored is None else stored.double()
    ends = {"beta_start": float(betas[0]), "beta_end": float(betas[-1])}
    kinds: tuple[Betas, ...] = ("scaled_linear", "linear", "cosine")
    for kind in kinds:
        known = ends if kind != "cosine" else {"beta_start": 0.0001, "beta_end": 0.02}
        rising = discrete_levels(kind, len(signal), known["beta_start"], known["beta_end"])
        levels = torch.tensor(rising, dtype=torch.float64)
        found = (1 / signal - 1).sqrt()
        if torch.allclose(levels.log(), found.log(), rtol=0, atol=1e-2):
            return {"betas": kind, "steps": len(signal)} | known
    raise UserError(f"{options.path} is refused: its schedule is neither linear nor cosine")
