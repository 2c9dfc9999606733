"""Decoders of latents: diffusers' AutoencoderKL out of a folder, and the first stage of a
latent-diffusion checkpoint as one.

    vae = load_vae(Path("sd-vae-ft-mse"))
    images = decode(vae, latents, info.latents)             # [-1, 1]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttrain.models.files.families.diffusers_folder import read_config, read_weights
from fasttrain.models.files.families.foreign import Latents
from fasttrain.system.errors import UserError
from fasttrain_data.pickle_data import shown

__all__ = ["decode", "first_stage", "load_vae"]

CLASS = "AutoencoderKL"
_NAMES = (
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^(encoder)\.down\.(\d+)\.block\.(\d+)\.", r"\1.down_blocks.\2.resnets.\3."),
    (r"^(encoder)\.down\.(\d+)\.downsample\.", r"\1.down_blocks.\2.downsamplers.0."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.norm\.", r"\1.mid_block.attentions.0.group_norm."),
    (r"^(encoder|decoder)\.mid\.attn_1\.q\.", r"\1.mid_block.attentions.0.to_q."),
    (r"^(encoder|decoder)\.mid\.attn_1\.k\.", r"\1.mid_block.attentions.0.to_k."),
    (r"^(encoder|decoder)\.mid\.attn_1\.v\.", r"\1.mid_block.attentions.0.to_v."),
    (r"^(encoder|decoder)\.mid\.attn_1\.proj_out\.", r"\1.mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
)
"""From a first stage's names to diffusers'; the decoder's levels are counted the other way."""
_OLD_ATTENTION = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


def load_vae(folder: Path) -> Any:
    """The autoencoder of a folder of diffusers', or of its `vae/`, in eval mode, float32.

    Raises UserError when there is none, or without diffusers.
    """
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json of an {CLASS}")
    config = read_config(folder / "config.json")
    if config.get("_class_name", CLASS) != CLASS:
        raise UserError(f"{folder} holds a {shown(str(config['_class_name']))}, not an {CLASS}")
    weights = {_renamed(n, _OLD_ATTENTION): w for n, w in read_weights(folder).items()}
    return _built({n: v for n, v in config.items() if n[:1] != "_"}, weights, folder)


def first_stage(weights: Mapping[str, Tensor], scale: float, source: Path) -> Any:
    """A latent-diffusion checkpoint's KL autoencoder as diffusers' own, its config told from its
    weights.

    Raises UserError for another kind, such as a VQ one.
    """
    if "quant_conv.weight" not in weights or any("quantize" in name for name in weights):
        raise UserError(f"{source}: its first stage is not a KL autoencoder")
    weights = {n: w for n, w in weights.items() if not n.startswith("loss.")}
    levels = 1 + max(int(m[1]) for n in weights if (m := re.match(r"encoder\.down\.(\d+)\.", n)))
    blocks = 1 + max(
        int(m[1]) for n in weights if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", n))
    )
    widths = [
        weights[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)
    ]
    config = {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "latent_channels": weights["post_quant_conv.weight"].shape[0],
        "norm_num_groups": 32,
        "scaling_factor": scale,
    }
    named = {}
    for name, value in weights.items():
        match = re.match(r"decoder\.up\.(\d+)\.(block|upsample)\.(\d+\.)?(.*)", name)
        if match:
            level = levels - 1 - int(match[1])
            part = f"resnets.{match[3]}" if match[2] == "block" else "upsamplers.0."
            name = f"decoder.up_blocks.{level}.{part}{match[4]}"
        name = _renamed(name, _NAMES)
        flat = ".attentions." in name and value.dim() == 4
        named[name] = value.flatten(1) if flat else value
    return _built(config, named, source)


def decode(vae: Any, latents: Tensor, how: Latents | None) -> Tensor:
    """Images [N, 3, H, W] in [-1, 1], unclipped, of what a network made.

    how: from the network's numbers to the decoder's; None: the decoder's own scaling.
    """
    if how is None:
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        how = Latents((scale,) * latents.shape[1], (-shift * scale,) * latents.shape[1])
    if len(how.scale) != latents.shape[1]:
        raise UserError(f"the decoder takes {len(how.scale)} channels, not {latents.shape[1]}")
    scale, bias = (
        torch.tensor(values, dtype=torch.float32, device=latents.device)[:, None, None]
        for values in (how.scale, how.bias)
    )
    images = vae.decode((latents - bias) / scale).sample
    return (images - how.low) * (2 / (1 - how.low)) - 1


def _built(config: dict[str, Any], weights: dict[str, Tensor], source: Path) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UserError(
            "latents are decoded by diffusers' AutoencoderKL: pip install 'fasttrain[diffusers]'"
        ) from None
    try:
        with torch.device("meta"):
            vae = AutoencoderKL(**config)
        vae.load_state_dict(weights, strict=True, assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = shown((str(error).splitlines() or [""])[-1].strip())
        raise UserError(f"{source} does not fit an {CLASS}: {reason}") from None
    return vae.eval().requires_grad_(False)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name
