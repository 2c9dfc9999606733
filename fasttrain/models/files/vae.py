"""Autoencoders of latents: diffusers' AutoencoderKL and VQModel out of a folder, and out of a file
latent-diffusion's, alone or as a model's first stage. The network is ours; nothing of diffusers'
runs.

    vae = load_vae(Path("sd-vae-ft-mse"))
    images = decode(vae, latents, info.latents)             # [-1, 1]
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fasttrain.models.files.families.diffusers_folder import (
    AUTOENCODERS,
    read_config,
    read_weights,
    weights_in,
)
from fasttrain.models.files.families.foreign import Latents, Weights, refusing
from fasttrain.models.files.families.latents import SCALE
from fasttrain.models.files.families.ldm import AVERAGE, FIRST_STAGE
from fasttrain.models.networks.autoencoder import AutoencoderKL
from fasttrain.system.errors import UserError
from fasttrain_data.pickle_data import shown

__all__ = ["VAE", "decode", "load_vae", "own_scaling"]

DEFAULTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {},
    "VQModel": {"latent_channels": 3, "num_vq_embeddings": 256, "scaling_factor": 1.0},
}
"""Classes -> where their defaults are others than those of `Config`."""
BESIDE = ("model.", AVERAGE, "cond_stage_model.", "loss.")
"""How names begin in a file of latent-diffusion's that are none of an autoencoder's."""
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
OLD_ATTENTION = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


class Config(BaseModel):
    """What a `config.json` says of the network, within bounds, because it may come from anyone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    in_channels: int = Field(3, ge=1, le=64)
    out_channels: int = Field(3, ge=1, le=64)
    latent_channels: int = Field(4, ge=1, le=64)
    block_out_channels: tuple[int, ...] = Field((64,), min_length=1, max_length=8)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = Field(1, ge=1, le=16)
    norm_num_groups: int = Field(32, ge=1, le=1024)
    act_fn: str = "silu"
    scaling_factor: float = Field(SCALE, gt=0, allow_inf_nan=False)
    shift_factor: float | None = Field(None, allow_inf_nan=False)
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    num_vq_embeddings: int = Field(0, ge=0, le=1 << 20)
    vq_embed_dim: int | None = None

    def build(self) -> AutoencoderKL:
        """The network. Raises ValueError for one that is not known here."""
        levels = len(self.block_out_channels)
        if (
            self.act_fn not in ("silu", "swish")
            or self.down_block_types != ("DownEncoderBlock2D",) * levels
            or self.up_block_types != ("UpDecoderBlock2D",) * levels
        ):
            raise ValueError("its blocks or activations are of other kinds")
        if not all(0 < width <= 8192 for width in self.block_out_channels):
            raise ValueError("block_out_channels")
        if self.latents_mean is not None or self.latents_std is not None:
            raise ValueError("it normalises its latents itself")
        if self.out_channels not in (1, 3):
            raise ValueError(f"it makes {self.out_channels} channels, and an image has 1 or 3")
        if self.vq_embed_dim not in (None, self.latent_channels):
            raise ValueError("its codes have other channels than its latents")
        return AutoencoderKL(
            self.in_channels,
            self.out_channels,
            self.latent_channels,
            widths=self.block_out_channels,
            layers=self.layers_per_block,
            groups=self.norm_num_groups,
            attention=self.mid_block_add_attention,
            quantised=self.use_quant_conv,
            dequantised=self.use_post_quant_conv,
            codes=self.num_vq_embeddings,
        )


@dataclass(frozen=True)
class VAE:
    """An autoencoder in eval mode, without gradients for its weights, float32.

    Attributes:
        scale, shift: its config's: networks see scale * (latents - shift).
        sha256: of its weights and of what its config says of the network, whatever the file.
    """

    network: AutoencoderKL
    scale: float
    shift: float
    sha256: str


def load_vae(path: Path) -> VAE:
    """The autoencoder of a folder of diffusers', or of its `vae/` or `vqvae/`; or of a file of
    latent-diffusion's. Raises UserError."""
    if path.is_file():
        with refusing(path):
            return _of_file(path)
    inside = (path / name for name in AUTOENCODERS)
    folder = next((each for each in inside if (each / "config.json").is_file()), path)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json of an autoencoder")
    config = read_config(folder / "config.json")
    kind = str(config.get("_class_name", "AutoencoderKL"))
    if kind not in DEFAULTS:
        raise UserError(f"{folder} holds a {shown(kind)}, not one of {', '.join(DEFAULTS)}")
    weights = {_renamed(n, OLD_ATTENTION): w for n, w in read_weights(folder).items()}
    return _built(DEFAULTS[kind] | config, weights, folder)


def _of_file(path: Path) -> VAE:
    """Of an autoencoder alone, or of a whole model, which may know the scale of its latents."""
    weights = weights_in(path, without=BESIDE)
    if any(name.startswith("decoder.up_blocks.") for name in weights):
        raise UserError(f"{path} is without its config: name the folder it lies in")
    scale = weights.get("scale_factor")
    inside = {
        n.removeprefix(FIRST_STAGE): w for n, w in weights.items() if n.startswith(FIRST_STAGE)
    }
    if inside and scale is None and "quantize.embedding.weight" not in inside:
        warnings.warn(
            f"{path} does not say the scale of its latents, which is taken as 1: set latents.scale "
            f"in recipes, or name a folder as diffusers has it",
            stacklevel=2,
        )
    return _first_stage(inside or weights, 1.0 if scale is None else float(scale), path)


def _first_stage(weights: Mapping[str, Tensor], scale: float, source: Path) -> VAE:
    """latent-diffusion's KL or VQ autoencoder, its config told from its weights."""
    if "encoder.down.0.block.0.conv1.weight" not in weights:
        raise UserError(
            f"{source} holds no autoencoder of latent-diffusion's: name one, or a folder as "
            f"diffusers has it"
        )
    if any(re.match(r"(encoder\.down|decoder\.up)\.\d+\.attn\.", name) for name in weights):
        raise UserError(
            f"{source} is refused: its autoencoder has attention between its levels' blocks, which "
            f"is not known here"
        )
    weights = Weights({n: w for n, w in weights.items() if not n.startswith("loss.")}, source)
    codes = weights.get("quantize.embedding.weight")
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
        "mid_block_add_attention": any(".mid.attn_1." in name for name in weights),
        "num_vq_embeddings": 0 if codes is None else codes.shape[0],
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


def decode(vae: VAE, latents: Tensor, how: Latents | None) -> Tensor:
    """Images [N, C, H, W] in [-1, 1], unclipped, of what a network made. Differentiable twice.

    how: from the network's numbers to the decoder's; None: the decoder's own scaling.
    """
    how = how or own_scaling(vae)
    channels = vae.network.latent_channels
    if len(how.scale) != channels or latents.shape[1] != channels:
        raise UserError(f"the decoder takes {channels} channels, not {latents.shape[1]}")
    scale, bias = (
        torch.tensor(values, dtype=torch.float32, device=latents.device)[:, None, None]
        for values in (how.scale, how.bias)
    )
    images = vae.network.decode((latents - bias) / scale)
    return (images - how.low) * (2 / (1 - how.low)) - 1


def own_scaling(vae: VAE) -> Latents:
    """What its config says, for every channel."""
    channels = vae.network.latent_channels
    return Latents((vae.scale,) * channels, (-vae.shift * vae.scale,) * channels)


def _built(config: dict[str, Any], weights: dict[str, Tensor], source: Path) -> VAE:
    try:
        said = Config.model_validate(config)
        with torch.device("meta"):
            network = said.build()
        network.load_state_dict(weights, strict=True, assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} does not fit an autoencoder: {_reason(error)}") from None
    of_codes = {"num_vq_embeddings", "vq_embed_dim"}  # which the weights say
    digest = hashlib.sha256(said.model_dump_json(exclude=of_codes).encode())
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].float().contiguous().numpy().tobytes())
    network = network.float().eval().requires_grad_(False)
    return VAE(network, said.scaling_factor, said.shift_factor or 0.0, digest.hexdigest())


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return shown(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    return shown((str(error).splitlines() or [""])[-1].strip())


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name
